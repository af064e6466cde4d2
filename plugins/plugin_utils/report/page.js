// Copyright: (c) The gpufleet developers
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Shows the data of the page. Texts come from hosts: they become text nodes and attributes, never HTML.
'use strict';

const {read_at: readAt, hosts, rollouts} = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const natural = new Intl.Collator('en', {numeric: true, sensitivity: 'base'}).compare;
const ROWS = matchMedia('(max-width: 640px)').matches ? 8 : 25; // of a table that are shown at first

/** An element with properties and children; a child is a node or a text. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === 'style') for (const [rule, text] of Object.entries(value)) made.style.setProperty(rule, text);
    else if (key.includes('-') || key === 'role') made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ''));
  return made;
}

// --- words

const gib = (bytes) => bytes === null || bytes === undefined ? '–' : (bytes / 2 ** 30).toFixed(bytes < 10 * 2 ** 30 ? 1 : 0);
const seconds = (value) => value === null || value === undefined ? '–' : value.toFixed(value < 100 ? 1 : 0) + ' s';
const plural = (number, word) => number + ' ' + word + (number === 1 ? '' : 's');
const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
const share = (gpu) => gpu.total ? Math.min(1, gpu.used / gpu.total) : null;
const COOL = 25; // degrees Celsius at which the scale begins
const heat = (gpu) => gpu.celsius === null ? null
  : Math.max(0, Math.min(1, (gpu.celsius - COOL) / ((gpu.slows_at || 90) - COOL)));

function ago(text) {
  const then = Date.parse(text) / 1000;
  if (Number.isNaN(then)) return text || '–';
  const minutes = Math.max(0, Math.round((readAt - then) / 60));
  if (minutes < 60) return minutes + ' min ago';
  return minutes < 2880 ? Math.round(minutes / 60) + ' h ago' : Math.round(minutes / 1440) + ' days ago';
}

function utc(date) {
  return Number.isNaN(date.getTime()) ? '' : date.toISOString().slice(0, 16).replace('T', ' ') + ' UTC';
}

const pill = (text, level) => element('span', {className: 'pill ' + level}, text);
const LEVEL = {unreachable: 'bad', gpu: 'bad', service: 'bad', drift: 'warn', slow: 'warn', note: 'quiet'};
const KIND = {unreachable: 'no answer', gpu: 'GPU', service: 'service', drift: 'drift', slow: 'slow', note: 'note'};
const LEVELS = {bad: 0, warn: 1, good: 2};

// --- what is shown of each host

const gpus = hosts.flatMap((host) => host.gpus);
for (const host of hosts) {
  host.used = sum(host.gpus.map((gpu) => gpu.used));
  host.total = sum(host.gpus.map((gpu) => gpu.total));
  host.celsius = Math.max(-1, ...host.gpus.map((gpu) => gpu.celsius ?? -1));
  host.kinds = new Set(host.problems.map((problem) => problem.kind));
  host.text = [
    host.name, host.driver,
    ...host.gpus.map((gpu) => gpu.name),
    ...host.problems.flatMap((one) => [one.place, one.text, KIND[one.kind]]),
    ...host.services.flatMap((one) => [one.unit, one.engine, one.verdict, one.version, ...one.models.map((model) => model.name)]),
  ].join('\n').toLowerCase();
}

const state = {find: '', show: 'all', sort: 'name'};
const ORDERS = {
  name: (a, b) => natural(a.name, b.name),
  level: (a, b) => LEVELS[a.level] - LEVELS[b.level] || b.problems.length - a.problems.length || natural(a.name, b.name),
  used: (a, b) => b.used / (b.total || 1) - a.used / (a.total || 1) || natural(a.name, b.name),
  celsius: (a, b) => b.celsius - a.celsius || natural(a.name, b.name),
};

function matches(host) {
  if (state.show === 'problems' ? host.level === 'good' : state.show !== 'all' && !host.kinds.has(state.show)) return false;
  return state.find.split(/\s+/).every((word) => host.text.includes(word));
}

// --- tables

const kindOf = (column) => column.number ? 'number' : column.wide ? 'wide' : '';

/** A table that sorts by its columns and shows its first rows. Roles are spelled out, as phones show rows as cards. */
class Table {
  constructor(section, caption, columns, first = ROWS) {
    Object.assign(this, {columns, first, rows: [], all: false, by: null, down: false});
    this.heads = columns.map((column) => {
      const button = element('button', {type: 'button'}, column.title);
      button.addEventListener('click', () => this.sortBy(column));
      return element('th', {scope: 'col', role: 'columnheader', className: kindOf(column)}, button);
    });
    this.body = element('tbody', {role: 'rowgroup'});
    this.more = element('button', {type: 'button', className: 'more'});
    this.more.addEventListener('click', () => { this.all = true; this.draw(); });
    this.none = element('p', {className: 'none'}, 'None.');
    section.querySelector('.table').append(
      element('table', {role: 'table'},
        element('caption', {className: 'unseen'}, caption),
        element('thead', {role: 'rowgroup'}, element('tr', {role: 'row'}, ...this.heads)), this.body),
      this.none, this.more);
  }

  sortBy(column) {
    this.down = this.by === column ? !this.down : Boolean(column.number);
    this.by = column;
    this.heads.forEach((head, index) => {
      if (this.columns[index] === column) head.setAttribute('aria-sort', this.down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    this.draw();
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    let rows = this.rows;
    if (this.by) {
      const value = this.by.value;
      const order = this.by.number
        ? (a, b) => (value(a) ?? -Infinity) - (value(b) ?? -Infinity)
        : (a, b) => natural(value(a), value(b));
      rows = [...rows].sort((a, b) => this.down ? order(b, a) : order(a, b));
    }
    const shown = this.all ? rows : rows.slice(0, this.first);
    this.body.replaceChildren(...shown.map((row) => element('tr', {role: 'row'}, ...this.columns.map((column) =>
      element('td', {role: 'cell', className: kindOf(column), 'data-title': column.title}, column.cell(row))))));
    this.more.hidden = shown.length === rows.length;
    this.more.textContent = 'Show all ' + rows.length;
    this.none.hidden = rows.length > 0;
    this.body.parentElement.hidden = rows.length === 0;
  }
}

function hostLink(host) {
  const link = element('button', {type: 'button', className: 'link'}, host.name);
  link.addEventListener('click', () => open(host));
  return link;
}

const hostColumn = {title: 'Host', wide: true, value: (row) => row.host.name, cell: (row) => hostLink(row.host)};

const problemTable = new Table(byId('problems'), 'Problems, the most serious first', [
  {title: 'Problem', value: (row) => row.kind, cell: (row) => pill(KIND[row.kind], LEVEL[row.kind])},
  hostColumn,
  {title: 'Where', value: (row) => row.place, cell: (row) => row.place || '–'},
  {title: 'Found', value: (row) => row.text, cell: (row) => row.text},
  {title: 'What to do', value: (row) => row.action, cell: (row) => row.action || '–'},
], 8);

function evenness(held) {
  const sizes = Object.values(held).filter(Boolean);
  return sizes.length > 1 ? Math.min(...sizes) / Math.max(...sizes) : null;
}

/** One small bar for each GPU of the host: the part of its memory that a model holds. */
function bars(host, held) {
  const text = host.gpus.filter((gpu) => held[gpu.index]).map((gpu) => `GPU ${gpu.index}: ${gib(held[gpu.index])} GiB`).join(', ');
  return element('span', {className: 'bars', role: 'img', 'aria-label': text || 'on no GPU', title: text},
    ...host.gpus.map((gpu) => element('i', {style: {'--v': gpu.total ? (held[gpu.index] || 0) / gpu.total : 0}})));
}

const spread = (held) => evenness(held) === null ? '–' : Math.round(100 * evenness(held)) + ' %';
const modelTable = new Table(byId('models'), 'Models in GPU memory', [
  {title: 'Model', value: (row) => row.name, cell: (row) => element('strong', {}, row.name)},
  hostColumn,
  {title: 'Service', value: (row) => row.unit, cell: (row) => row.unit},
  {title: 'GPUs', number: true, value: (row) => Object.keys(row.held).length, cell: (row) => String(Object.keys(row.held).length)},
  {title: 'Memory of each GPU', value: (row) => sum(Object.values(row.held)), cell: (row) => bars(row.host, row.held)},
  {title: 'GiB', number: true, value: (row) => sum(Object.values(row.held)), cell: (row) => gib(sum(Object.values(row.held)))},
  {title: 'Evenness', number: true, value: (row) => evenness(row.held), cell: (row) => spread(row.held)},
]);

const SERVICE = {'as declared': 'good', differs: 'warn', failed: 'bad', unknown: 'quiet'};
const verdictLevel = (row) => row.verdict === 'ok' ? 'good' : row.verdict && row.verdict !== 'unknown' ? 'bad' : 'quiet';

function drift(row) {
  if (row.state === 'as declared') return pill('as declared', 'good');
  const more = row.drift.filter((name) => !row.why.some((why) => why.includes(name)));
  const said = [...row.why, more.length ? 'variables: ' + more.join(', ') : ''].filter(Boolean).join('; ');
  return element('span', {}, pill(row.state, SERVICE[row.state]), said ? ' ' + said : '');
}

function proof(row) {
  const last = row.generations[0];
  if (!last) return '–';
  const said = [last.ready === null ? '' : 'ready in ' + seconds(last.ready), last.answer,
    last.latency === null ? '' : 'in ' + seconds(last.latency)].filter(Boolean).join(', ');
  return element('span', {title: last.accepted}, ago(last.accepted), said ? element('small', {}, said) : '');
}

const serviceTable = new Table(byId('services'), 'Services and their last proof', [
  {title: 'Service', wide: true, value: (row) => row.unit, cell: (row) => element('strong', {}, row.unit)},
  hostColumn,
  {title: 'Version', value: (row) => row.version, cell: (row) => row.version || '–'},
  {title: 'Verdict', value: (row) => row.verdict, cell: (row) => pill(row.verdict || '–', verdictLevel(row))},
  {title: 'State', value: (row) => row.state, cell: drift},
  {title: 'Last proof', wide: true, value: (row) => row.generations[0]?.accepted || '', cell: proof},
  {title: 'Unserved then', number: true, value: (row) => row.generations[0]?.unserved, cell: (row) => seconds(row.generations[0]?.unserved)},
]);

// --- the map of the GPUs

const map = byId('map');
const HEALTH = {fit: 'fit', slow: 'slow', unfit: 'unfit', lost: 'does not answer'};

function told(gpu) {
  return [`GPU ${gpu.index} ${gpu.name}`, `${gib(gpu.used)} of ${gib(gpu.total)} GiB`,
    gpu.celsius === null ? '' : gpu.celsius + ' °C', HEALTH[gpu.health], ...gpu.why].filter(Boolean).join(' · ');
}

function cell(gpu) {
  const made = element('i', {className: gpu.health + (gpu.total ? '' : ' nothing'), title: told(gpu)});
  made.style.setProperty('--memory', share(gpu) ?? 0);
  made.style.setProperty('--heat', heat(gpu) ?? 0);
  return made;
}

function strip(host) {
  const unfit = host.gpus.filter((gpu) => gpu.health !== 'fit').length;
  const said = host.kinds.has('unreachable') ? 'does not answer' : !host.gpus.length ? 'no GPUs' : [
    plural(host.gpus.length, 'GPU'), Math.round(100 * host.used / (host.total || 1)) + ' % of memory in use',
    host.celsius < 0 ? '' : host.celsius + ' °C', unfit ? unfit + ' not fit' : '',
  ].filter(Boolean).join(', ');
  const label = `${host.name}: ${said}` + (host.problems.length ? `, ${plural(host.problems.length, 'problem')}` : '');
  const made = element('button', {type: 'button', className: 'strip ' + host.level, tabIndex: -1, 'aria-label': label},
    element('b', {}, host.name), element('span', {className: 'cells'}, ...host.gpus.map(cell),
      host.gpus.length ? '' : element('em', {}, said)));
  made.addEventListener('click', () => open(host));
  return made;
}

const strips = new Map(hosts.map((host) => [host, strip(host)]));

/** Moves the focus among the visible hosts; of all of them, one is in the order of Tab. */
map.addEventListener('keydown', (event) => {
  const shown = [...map.children].filter((one) => !one.hidden);
  const here = shown.indexOf(document.activeElement);
  if (here < 0) return;
  const wide = Math.max(1, shown.filter((one) => one.offsetTop === shown[0].offsetTop).length);
  const target = {ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: here + wide, ArrowUp: here - wide, Home: 0,
    End: shown.length - 1}[event.key];
  if (target === undefined) return;
  event.preventDefault();
  shown[Math.max(0, Math.min(shown.length - 1, target))].focus();
});
map.addEventListener('focusin', (event) => {
  for (const one of map.querySelectorAll('[tabindex="0"]')) one.tabIndex = -1;
  event.target.tabIndex = 0;
});

const LEGENDS = {
  memory: ['0 %', '100 % of the memory in use'],
  heat: [COOL + ' °C', 'where the GPU slows down'],
  health: null,
};

function legend(colour) {
  const swatch = (name) => element('i', {className: name});
  map.className = colour + (hosts.length > 60 ? ' dense' : '');
  byId('legend').className = 'legend ' + colour;
  byId('legend').replaceChildren(...(LEGENDS[colour]
    ? [LEGENDS[colour][0], element('span', {className: 'scale'}), LEGENDS[colour][1]]
    : [swatch('fit'), 'fit', swatch('slow'), 'slow']),
  swatch('unfit'), 'unfit', swatch('lost nothing'), 'does not answer');
}
byId('colour').addEventListener('change', (event) => legend(event.target.value));

// --- one host

const dialog = byId('host');
dialog.querySelector('button').addEventListener('click', () => dialog.close());
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });

function plain(caption, titles, rows) {
  return element('div', {className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': caption}, element('table', {className: 'plain'},
    element('caption', {className: 'unseen'}, caption),
    element('thead', {}, element('tr', {}, ...titles.map((title) => element('th', {scope: 'col'}, title)))),
    element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map((one, index) =>
      index ? element('td', {}, one) : element('th', {scope: 'row'}, one)))))));
}

function near(word) {
  const link = word.startsWith('NV') ? 'nvlink' : {X: 'self', PIX: 'close', PXB: 'close', SYS: 'far', NODE: 'far'}[word] || '';
  return element('span', {className: 'near ' + link}, word || '?');
}

const chapter = (title, ...children) => [element('h3', {}, title), ...children];

function open(host) {
  const names = host.gpus.map((gpu) => 'GPU ' + gpu.index);
  byId('host-title').textContent = host.name;
  const parts = [
    element('p', {className: 'quiet-text'}, [plural(host.gpus.length, 'GPU'), host.driver ? 'driver ' + host.driver : '']
      .filter(Boolean).join(' · ')),
    ...host.problems.map((one) => element('p', {className: 'problem'}, pill(KIND[one.kind], LEVEL[one.kind]),
      ' ' + [one.place, one.text].filter(Boolean).join(': '), one.action ? element('small', {}, one.action) : '')),
  ];
  if (host.gpus.length) {
    parts.push(...chapter('GPUs', plain('GPUs of ' + host.name,
      ['GPU', 'Model', 'Memory (GiB)', '°C', 'Busy', 'Watts', 'Health', 'Held by'],
      host.gpus.map((gpu) => [String(gpu.index), gpu.name, `${gib(gpu.used)} of ${gib(gpu.total)}`, String(gpu.celsius ?? '–'),
        gpu.busy === null ? '–' : gpu.busy + ' %', gpu.watts === null ? '–' : Math.round(gpu.watts) + ' of ' + Math.round(gpu.watts_limit || 0),
        pill(HEALTH[gpu.health], gpu.health === 'fit' ? 'good' : gpu.health === 'slow' ? 'warn' : 'bad'),
        Object.entries(gpu.units).map(([unit, bytes]) => `${unit || 'no unit'} ${gib(bytes)}`).join(', ') || '–']))));
  }
  if (host.topology.length > 1) {
    parts.push(...chapter('Topology', plain('How near the GPUs are to each other', ['', ...names],
      [...host.topology.map((row, index) => [names[index] || String(index), ...row.map(near)]),
        ...host.rdma.map((one) => [one.name, ...one.near.map(near)])])));
  }
  for (const one of host.services) {
    parts.push(...chapter(one.unit, element('p', {}, pill(one.verdict || '–', verdictLevel(one)), ' ', drift(one)),
      one.line ? element('p', {className: 'quiet-text'}, one.line) : ''));
    if (one.models.length) {
      parts.push(plain('Models of ' + one.unit, ['Model', 'Memory of each GPU', 'GiB', 'Evenness'],
        one.models.map((model) => [model.name, bars(host, model.held), gib(sum(Object.values(model.held))), spread(model.held)])));
    }
    if (one.generations.length) {
      parts.push(plain('Generations of ' + one.unit, ['No.', 'Accepted', 'Verdict', 'Unserved', 'Changed'],
        one.generations.map((last) => [String(last.number ?? ''), utc(new Date(last.accepted)), last.verdict, seconds(last.unserved),
          last.changes.join(', ') || 'the first'])));
    }
  }
  dialog.querySelector('.body').replaceChildren(...parts.filter((part) => part !== ''));
  dialog.showModal();
  dialog.scrollTop = 0;
}

// --- rollouts

const STATUS = {done: 'changed', waiting: 'not touched', failed: 'failed', lost: 'lost'};

function rolloutDate(run) {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)/.exec(run);
  return found ? `${found[1]}-${found[2]}-${found[3]} ${found[4]}:${found[5]} UTC` : run;
}

function gap(row, longest) {
  const part = (value) => (100 * (value || 0) / longest).toFixed(1) + '%';
  const said = `${row.host} ${row.service}: predicted ${seconds(row.predicted)}, measured ${seconds(row.measured)}`;
  const over = row.measured !== null && row.measured > 1.5 * row.predicted + 1;
  return element('li', {'aria-label': said, title: said},
    element('span', {className: 'who'}, row.host, element('small', {}, row.service)),
    element('span', {className: 'track'},
      row.measured === null ? '' : element('i', {className: over ? 'over' : '', style: {width: part(row.measured)}}),
      element('u', {style: {left: part(row.predicted)}})),
    element('span', {className: 'figures'}, `${seconds(row.measured)} / ${seconds(row.predicted)}`));
}

function rolloutDetails(one, index) {
  const counts = {};
  for (const host of one.hosts) counts[STATUS[host.status] || 'in hand'] = (counts[STATUS[host.status] || 'in hand'] || 0) + 1;
  const rows = one.hosts.flatMap((host) => host.services.map((row) => ({...row, host: host.name})))
    .sort((a, b) => (b.measured ?? -1) - (a.measured ?? -1) || natural(a.host, b.host));
  const measured = rows.filter((row) => row.measured !== null);
  const longest = Math.max(1, ...rows.flatMap((row) => [row.predicted || 0, row.measured || 0])) * 1.05;
  const said = [...Object.entries(counts).map(([word, number]) => `${number} ${word}`), one.as_declared + ' as declared'];
  const price = measured.length ? `unserved ${seconds(sum(measured.map((row) => row.measured)))}, predicted `
    + seconds(sum(measured.map((row) => row.predicted))) + (one.error === null ? '' : `, off by ${Math.round(100 * one.error)} %`)
    : 'nothing was restarted';
  return element('details', {open: index === 0},
    element('summary', {}, element('strong', {}, rolloutDate(one.run)),
      pill(one.verdict, {complete: 'good', failed: 'bad'}[one.verdict] || 'warn'), element('span', {}, said.join(', ')),
      element('span', {className: 'quiet-text'}, price)),
    one.reason ? element('p', {className: 'problem'}, one.reason) : '',
    ...one.hosts.filter((host) => host.why).map((host) => element('p', {className: 'problem'},
      pill(STATUS[host.status] || 'in hand', 'bad'), ` ${host.name}: ${host.why}` + (host.rolled_back ? ' (rolled back)' : ''))),
    rows.length ? element('p', {className: 'quiet-text'}, 'Seconds without the service: the bar is measured, the mark predicted.') : '',
    rows.length ? element('ul', {className: 'gaps'}, ...rows.slice(0, ROWS).map((row) => gap(row, longest))) : '',
    rows.length > ROWS ? element('p', {className: 'quiet-text'}, `The longest ${ROWS} of ${rows.length}.`) : '',
    ...one.pools.filter((pool) => pool.least_ready !== null).map((pool) => element('p', {className: 'quiet-text'},
      `Pool ${pool.name}: never fewer than ${pool.least_ready} of ${pool.hosts} ready, at least ${pool.minimum} wanted.`)));
}

// --- totals

function tile(title, value, note, show, level, part) {
  const made = element('button', {type: 'button', className: 'tile ' + level, 'aria-pressed': 'false'},
    element('span', {className: 'title'}, title), element('span', {className: 'value'}, value),
    part === undefined ? '' : element('span', {className: 'meter'}, element('i', {style: {width: 100 * part + '%'}})),
    element('span', {className: 'note'}, note));
  made.dataset.show = show;
  made.addEventListener('click', () => {
    byId('show').value = byId('show').value === show ? 'all' : show;
    read();
  });
  return made;
}

function tiles() {
  const kind = (name) => hosts.filter((host) => host.kinds.has(name)).length;
  const unfit = gpus.filter((gpu) => gpu.health === 'unfit' || gpu.health === 'lost').length;
  const services = hosts.flatMap((host) => host.services);
  const good = services.filter((one) => one.verdict === 'ok').length;
  const used = sum(gpus.map((gpu) => gpu.used));
  const total = sum(gpus.map((gpu) => gpu.total));
  byId('tiles').append(
    tile('Hosts', `${hosts.length - kind('unreachable')} / ${hosts.length}`, kind('unreachable') ? kind('unreachable') + ' without an answer' : 'all answer',
      'unreachable', kind('unreachable') ? 'bad' : 'good'),
    tile('GPUs fit', `${gpus.length - unfit} / ${gpus.length}`, unfit ? unfit + ' unfit' : 'all fit', 'gpu', kind('gpu') ? 'bad' : 'good'),
    tile('Memory in use', total ? Math.round(100 * used / total) + ' %' : '–', total < 10 * 2 ** 40 ? `${gib(used)} of ${gib(total)} GiB` : `${gib(used / 1024)} of ${gib(total / 1024)} TiB`, 'all', '', total ? used / total : 0),
    tile('Services ok', `${good} / ${services.length}`, kind('service') ? plural(kind('service'), 'host') + ' with a failure' : 'no failure',
      'service', kind('service') ? 'bad' : 'good'),
    tile('Drift', String(kind('drift')), kind('drift') ? plural(kind('drift'), 'host') + ' to change' : 'as declared', 'drift', kind('drift') ? 'warn' : 'good'));
}

// --- filter

let sorted = ''; // the order that the map is in

function update() {
  if (sorted !== state.sort) {
    sorted = state.sort;
    hosts.sort(ORDERS[sorted]);
    map.replaceChildren(...hosts.map((host) => strips.get(host)));
  }
  const shown = hosts.filter(matches);
  const seen = new Set(shown);
  for (const [host, one] of strips) one.hidden = !seen.has(host);
  const focusable = map.querySelector('[tabindex="0"]');
  if (!focusable || focusable.hidden) {
    if (focusable) focusable.tabIndex = -1;
    if (shown.length) strips.get(shown[0]).tabIndex = 0;
  }
  byId('gpus').querySelector('.none').hidden = shown.length > 0;
  const problems = shown.flatMap((host) => host.problems.map((one) => ({...one, host})));
  const order = Object.keys(KIND);
  problemTable.show(problems.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || natural(a.host.name, b.host.name)));
  const services = shown.flatMap((host) => host.services.map((one) => ({...one, host})));
  serviceTable.show(services);
  modelTable.show(services.flatMap((one) => one.models.map((model) => ({...model, host: one.host, unit: one.unit}))));
  byId('count').textContent = shown.length === hosts.length ? plural(hosts.length, 'host') : `${shown.length} of ${plural(hosts.length, 'host')}`;
  for (const one of document.querySelectorAll('.tile')) one.setAttribute('aria-pressed', String(one.dataset.show === state.show && state.show !== 'all'));
}

function read() {
  Object.assign(state, {find: byId('find').value.trim().toLowerCase(), show: byId('show').value, sort: byId('sort').value});
  update();
}

let waiting = 0;
byId('find').addEventListener('input', () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(read); // once a frame, however fast someone types
});
byId('show').addEventListener('change', read);
byId('sort').addEventListener('change', read);
byId('bar').addEventListener('submit', (event) => event.preventDefault());
document.addEventListener('keydown', (event) => {
  if (event.key !== '/' || dialog.open || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  byId('find').focus();
});

const THEMES = ['system', 'light', 'dark'];
byId('theme').addEventListener('click', (event) => {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme || 'system') + 1) % THEMES.length];
  root.dataset.theme = next;
  event.target.textContent = 'Theme: ' + next;
});

byId('about').textContent = `${plural(hosts.length, 'host')}, ${plural(gpus.length, 'GPU')} · read ${utc(new Date(readAt * 1000))}`;
byId('rollouts').querySelector('.list').append(...(rollouts.length ? rollouts.map(rolloutDetails)
  : [element('p', {className: 'none'}, 'No rollout of this inventory has ended on this controller.')]));
tiles();
legend('memory');
update();
document.documentElement.dataset.ready = 'yes';
