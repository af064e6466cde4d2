# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What HAProxy cannot express itself: which model a JSON body asks for, read as its engine reads it.

Of several ``model`` keys, ``json_query`` reads the first, Python and Go the last, and Go ignores case: a client with a
key for one model could use another one. Such a body is rejected here.
"""

from __future__ import annotations

LUA = r"""
-- Written by the Ansible collection gpufleet.inference.
-- Sets txn.body: whole, part (longer than the buffer), or bad; and txn.model where the body names one.
local byte, find, gsub, lower, sub = string.byte, string.find, string.gsub, string.lower, string.sub

-- where the string that begins at `at` ends, nil where it is cut off; and whether anything in it is escaped
local function string_end(text, at)
  local escaped, pos = false, at + 1
  while true do
    local hit = find(text, '["\\]', pos)
    if not hit then return nil, escaped end
    if byte(text, hit) == 34 then return hit, escaped end
    escaped, pos = true, hit + 2
  end
end

-- where the value that begins at `at` ends, nil where it is cut off
local function value_end(text, at)
  local first = sub(text, at, at)
  if first == '"' then return (string_end(text, at)) end
  if first ~= '{' and first ~= '[' then
    local _, last = find(text, '^[%w.+-]*', at)
    if last == #text then return nil end
    return last
  end
  local depth, pos = 0, at
  while true do
    local hit = find(text, '[%[%]{}"]', pos)
    if not hit then return nil end
    local mark = byte(text, hit)
    if mark == 34 then
      hit = string_end(text, hit)
      if not hit then return nil end
    elseif mark == 91 or mark == 123 then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then return hit end
    end
    pos = hit + 1
  end
end

local function next_sign(text, pos)
  return find(text, '[^ \t\r\n]', pos)
end

-- what the body is, and the model that it names
local function scan(text, names)
  local model
  local pos = next_sign(text, 1)
  if not pos or byte(text, pos) ~= 123 then return 'bad' end
  pos = next_sign(text, pos + 1)
  if pos and byte(text, pos) == 125 then return 'whole' end
  while true do
    if not pos then return 'part', model end
    if byte(text, pos) ~= 34 then return 'bad' end
    local last, escaped = string_end(text, pos)
    if not last then return 'part', model end
    local name = lower(sub(text, pos + 1, last - 1))
    if escaped then return 'bad' end
    pos = next_sign(text, last + 1)
    if not pos then return 'part', model end
    if byte(text, pos) ~= 58 then return 'bad' end
    pos = next_sign(text, pos + 1)
    if not pos then return 'part', model end
    last = value_end(text, pos)
    if not last then return 'part', model end
    if names[name] then
      local value = gsub(sub(text, pos + 1, last - 1), '\\/', '/')
      if model or byte(text, pos) ~= 34 or find(value, '\\', 1, true) then return 'bad' end
      model = value
    end
    pos = next_sign(text, last + 1)
    if not pos then return 'part', model end
    local mark = byte(text, pos)
    if mark == 125 then return 'whole', model end
    if mark ~= 44 then return 'bad' end
    pos = next_sign(text, pos + 1)
  end
end

core.register_action('gpufleet_body', {'http-req'}, function(txn)
  local names = {model = true}
  if txn:get_var('txn.path') == '/api/show' then names.name = true end
  local kind, model = scan(txn.sf:req_body(), names)
  txn:set_var('txn.body', kind)
  if model then txn:set_var('txn.model', model) end
end, 0)
"""
