# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway counts beyond HAProxy's own figures: the tokens of an answer, and the requests of each key.

An answer names its tokens near its end, if at all. Only its last bytes are kept while it passes, so nothing waits. What
the model has written is not mistaken for them: inside a JSON string, quotes are escaped.
"""

from __future__ import annotations

LUA = r"""
-- Sets txn.tokens, the end of a line of the log, where an answer names its tokens.
local TAIL = 4096
local FIELDS = {
  tokens_in = {'prompt_tokens', 'input_tokens', 'prompt_eval_count'},
  tokens_out = {'completion_tokens', 'output_tokens', 'eval_count'},
}

local function last_of(text, names)
  for _, name in ipairs(names) do
    local count = string.match(text, '.*"' .. name .. '"%s*:%s*(%d+)')
    if count and #count < 16 then return tonumber(count) end
  end
end

local Tokens = {flags = filter.FLT_CFG_FL_HTX}
Tokens.__index = Tokens

function Tokens:new()
  return setmetatable({tail = ''}, Tokens)
end

function Tokens:http_headers(txn, message)
  if message:is_resp() then filter.register_data_filter(self, message.channel) end
end

function Tokens:http_payload(txn, message)
  self.tail = string.sub(self.tail .. (message:body(-TAIL) or ''), -TAIL)
end

function Tokens:http_end(txn, message)
  if not message:is_resp() then return end
  local said = ''
  for field, names in pairs(FIELDS) do
    local count = last_of(self.tail, names)
    if count then said = said .. string.format(',"%s":%d', field, count) end
  end
  if said ~= '' then txn:set_var('txn.tokens', said) end
end

core.register_filter('gpufleet_tokens', Tokens, function(tokens, _) return tokens end)

-- The requests of each key, for Prometheus.
local FIGURES = {
  {'requests_total', 'counter', 'http_req_cnt'},
  {'rejected_total', 'counter', 'gpc0'},
  {'requests', 'gauge', 'conn_cur'},
}

core.register_service('gpufleet_keys', 'http', function(applet)
  local rows, lines = core.proxies[':holders'].stktable:dump(), {}
  for _, figure in ipairs(FIGURES) do
    table.insert(lines, '# TYPE gpufleet_key_' .. figure[1] .. ' ' .. figure[2])
    for key, row in pairs(rows) do
      table.insert(lines, string.format('gpufleet_key_%s{key="%s"} %d', figure[1], key, row[figure[3]]))
    end
  end
  local text = table.concat(lines, '\n') .. '\n'
  applet:set_status(200)
  applet:add_header('content-type', 'text/plain; version=0.0.4')
  applet:add_header('content-length', tostring(#text))
  applet:start_response()
  applet:send(text)
end)
"""
