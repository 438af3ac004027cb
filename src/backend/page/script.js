"use strict";
// Values from the backend reach the page as text nodes and numbers only, never as HTML.
const SVG = "http://www.w3.org/2000/svg";
const RANGES = ["5min", "15min", "1h", "6h", "24h", "7d"];
const EVERY = 5000;
const COLOURS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
const LINES_MAX = 6;
const BARS_MAX = 8;
const CARD_MIN = 500, CARD_GAP = 16, CARD_INSET = 34; // as in the style sheet
const SIZE = { width: 560, height: 190, left: 58, right: 10, top: 8, bottom: 24 };
const $ = (id) => document.getElementById(id);
const state = { server: null, range: "15min", seen: 0, timer: null, hover: null };

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function painted(made, property, colour) {
  made.style.setProperty(property, `var(${colour})`);
  return made;
}

// Numbers for people.
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}
const percent = (value) => `${value >= 99.95 || value < 0.05 ? value.toFixed(0) : value.toFixed(1)} %`;
const rate = (value) => `${value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)} MB/s`;
const plain = (value, top = value) => value.toFixed(top >= 100 ? 0 : top >= 8 ? 1 : 2);
const count = (value) => value.toLocaleString("en");

function span(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function clockTime(at, long) {
  const time = new Date(at);
  const two = (n) => String(n).padStart(2, "0");
  const hour = `${two(time.getHours())}:${two(time.getMinutes())}`;
  if (long === "day") return `${two(time.getMonth() + 1)}-${two(time.getDate())} ${hour}`;
  return long ? `${hour}:${two(time.getSeconds())}` : hour;
}

// The agents.
function backlog(agent, now) {
  const backlog = agent.report?.backlog;
  if (!backlog) return element("td", { className: "number" }, "–");
  if (backlog.records === 0) return element("td", { className: "number" }, "empty");
  const age = backlog.oldest_at ? `, oldest ${span(now - Date.parse(backlog.oldest_at))}` : "";
  return element("td", { className: "number" }, `${count(backlog.records)} records`,
    element("small", {}, `${bytes(backlog.bytes)}${age}`));
}

function offset(agent) {
  const cell = element("td", { className: "number" });
  const value = agent.report?.clock_offset_ms;
  if (value === undefined) cell.append("–");
  else {
    cell.append(Math.abs(value) < 1000 ? `${value} ms` : `${(value / 1000).toFixed(1)} s`);
    if (Math.abs(value) >= 5000) cell.classList.add("late");
  }
  return cell;
}

function agentRow(agent, server, now) {
  const seen = agent.last_seen === null ? "never" : `${span(now - agent.last_seen)} ago`;
  const held = agent.report?.config_version;
  const config = element("td", {}, agent.config_version ? `v${agent.config_version}` : "own file");
  if (agent.report?.config_error) {
    config.append(element("small", { className: "failed", title: agent.report.config_error }, "does not load"));
  } else if (agent.config_version && held !== undefined && held !== agent.config_version) {
    config.append(element("small", {}, `has v${held}`));
  }
  const row = element("tr", {},
    element("td", {}, agent.name, element("small", {}, agent.hostname)),
    element("td", {}, element("span", { className: `pill ${agent.status}` }, agent.status)),
    element("td", {}, seen), backlog(agent, now), offset(agent),
    element("td", { className: "number" }, count(agent.metrics_24h), element("small", {}, `${count(agent.metrics_total)} in all`)),
    config, element("td", {}, agent.version ?? "–"));
  if (server) {
    row.className = server.id === state.server ? "open chosen" : "open";
    row.tabIndex = 0;
    row.onclick = () => choose(server.id);
    row.onkeydown = (event) => { if (event.key === "Enter") choose(server.id); };
  }
  return row;
}

function showAgents(data) {
  const box = $("agents");
  if (data.agents.length === 0) {
    box.replaceChildren(element("div", { className: "empty" }, element("div", {},
      element("strong", {}, "No agent has registered yet"),
      "Register one on a host of yours:", element("br"),
      element("code", {}, "agent register --config /etc/pganalytics/agent.toml"))));
    return;
  }
  const focused = [...box.querySelectorAll("tbody tr")].indexOf(document.activeElement);
  const heads = ["Agent", "Status", "Last seen", "Backlog", "Clock offset", "Metrics, 24 h", "Configuration", "Version"];
  const numbers = [3, 4, 5];
  const head = heads.map((text, n) => element("th", { scope: "col", className: numbers.includes(n) ? "number" : "" }, text));
  const rows = data.agents.map((agent) =>
    agentRow(agent, data.servers.find((server) => server.collector_id === agent.id), data.now));
  box.replaceChildren(element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
  if (focused >= 0) rows[focused]?.focus();
}

// The charts.
// The top of an axis with four steps, each a number that reads well.
function nice(top, binary) {
  if (!(top > 0)) return 1;
  const step = top / 4;
  const base = binary ? 1024 ** Math.max(0, Math.floor(Math.log(top) / Math.log(1024))) : 1;
  const power = 10 ** Math.floor(Math.log10(step / base));
  const round = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((n) => n * power * base >= step * (1 - 1e-9)) ?? 10;
  return 4 * round * power * base;
}

// Charts are drawn as wide as they are shown, so that their text keeps its shape.
function fit() {
  const all = $("charts").clientWidth;
  const columns = Math.max(1, Math.floor((all + CARD_GAP) / (CARD_MIN + CARD_GAP)));
  SIZE.width = Math.max(220, Math.floor((all - CARD_GAP * (columns - 1)) / columns) - CARD_INSET);
}

function pathOf(points, x, y, gap) {
  let path = "", last = null;
  for (const [at, value] of points) {
    path += `${last === null || at - last > gap ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    last = at;
  }
  return path;
}

// Areas on top of each other: every line is closed along the one below it, run by run.
function areaOf(upper, lower, x, y, gap) {
  let path = "", from = 0;
  for (let n = 1; n <= upper.length; n += 1) {
    if (n < upper.length && upper[n][0] - upper[n - 1][0] <= gap) continue;
    const run = upper.slice(from, n), base = lower.slice(from, n).reverse();
    path += run.map(([at, v], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    path += base.map(([at, v]) => `L${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("") + "Z";
    from = n;
  }
  return path;
}

function stacked(lines) {
  const times = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  let below = times.map((at) => [at, 0]);
  return lines.map((line) => {
    const values = new Map(line.points);
    const upper = below.map(([at, value]) => [at, value + (values.get(at) ?? 0)]);
    const layer = { line, upper, lower: below };
    below = upper;
    return layer;
  });
}

function gapOf(lines, step) {
  const distances = [];
  for (const { points } of lines) for (let n = 1; n < points.length; n += 1) distances.push(points[n][0] - points[n - 1][0]);
  distances.sort((a, b) => a - b);
  return Math.max(step, distances[Math.floor(distances.length / 2)] ?? 0) * 3.5;
}

function card(title, now) {
  return element("article", { className: "card chart" },
    element("header", {}, element("h3", {}, title), element("span", { className: "now" }, now ?? "")));
}

function nothing(title, why) {
  const box = card(title);
  box.append(element("div", { className: "empty" }, element("div", {}, element("strong", {}, "No data in this range"), why)));
  return box;
}

function axis(svg, data, x, y, spec, top) {
  const { width, height, left, right, bottom } = SIZE;
  for (let n = 0; n <= 4; n += 1) {
    const value = top * n / 4, line = y(value);
    svg.append(shape("line", { class: "rule", x1: left, x2: width - right, y1: line, y2: line }),
      shape("text", { x: left - 7, y: line + 4, "text-anchor": "end" }, spec.tick(value, top)));
  }
  const long = data.to - data.from > 36 * 3600e3 ? "day" : data.to - data.from < 300e3;
  for (let n = 0; n <= 4; n += 1) {
    const at = data.from + (data.to - data.from) * n / 4;
    const anchor = n === 0 ? "start" : n === 4 ? "end" : "middle";
    svg.append(shape("text", { x: x(at), y: height - bottom + 16, "text-anchor": anchor }, clockTime(at, long)));
  }
}

function chart(spec, lines, data) {
  lines = lines.filter((line) => !spec.stacked || line.points.some((point) => point[1] > 0)).slice(0, LINES_MAX);
  if (lines.length === 0) return nothing(spec.title, spec.why);
  const { width, height, left, right, top: above, bottom } = SIZE;
  const layers = spec.stacked ? stacked(lines) : lines.map((line) => ({ line, upper: line.points }));
  const peak = Math.max(...layers.flatMap((layer) => layer.upper.map((point) => point[1])));
  const top = spec.top ?? nice(Math.max(peak, spec.least ?? 0), spec.binary);
  const x = (at) => left + (at - data.from) / (data.to - data.from) * (width - left - right);
  const y = (value) => height - bottom - Math.min(1, value / top) * (height - above - bottom);
  const gap = gapOf(lines, data.step);
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.title });
  axis(svg, data, x, y, spec, top);
  const colour = (n) => spec.colours?.[lines[n].name] ?? COLOURS[n % COLOURS.length];
  layers.forEach((layer, n) => {
    if (layer.lower) {
      const area = shape("path", { d: areaOf(layer.upper, layer.lower, x, y, gap), "fill-opacity": .55 });
      svg.append(painted(area, "fill", colour(n)));
    }
    const stroke = shape("path", { class: "stroke", d: pathOf(layer.upper, x, y, gap), "vector-effect": "non-scaling-stroke" });
    svg.append(painted(stroke, "stroke", colour(n)));
    if (layer.upper.length === 1) {
      const [at, value] = layer.upper[0];
      svg.append(painted(shape("circle", { cx: x(at), cy: y(value), r: 2.5 }), "fill", colour(n)));
    }
  });
  for (const hole of data.lost) {
    if (hole.to < data.from || hole.from > data.to) continue;
    const [begin, end] = [x(Math.max(hole.from, data.from)), x(Math.min(hole.to, data.to))];
    // A hole is as wide as what is missing, and always wide enough to be seen and pointed at.
    const mark = end - begin < 2
      ? shape("line", { class: "hole", x1: begin, x2: begin, y1: above, y2: height - bottom })
      : shape("rect", { class: "hole", x: begin, y: above, width: end - begin, height: height - bottom - above });
    mark.append(shape("title", {}, `${count(hole.records)} records lost: ${hole.reason}`));
    svg.append(mark);
  }
  const box = card(spec.title, spec.now?.(lines));
  const keys = lines.map((line, n) => element("span", { className: "key" }, painted(element("i"), "background", colour(n)), line.name));
  box.append(svg, element("div", { className: "legend" }, ...keys));
  hoverable(box, svg, { spec, lines, data, x, colour });
  return box;
}

function hoverable(box, svg, { spec, lines, data, x, colour }) {
  const { width, height, left, right, top, bottom } = SIZE;
  const cross = shape("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
  const tip = element("div", { className: "tip", hidden: true });
  svg.append(cross);
  box.append(tip);
  const times = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const show = (clientX) => {
    const area = svg.getBoundingClientRect();
    const inside = (clientX - area.left) / area.width * width;
    const wanted = data.from + (inside - left) / (width - left - right) * (data.to - data.from);
    const at = times.reduce((best, time) => Math.abs(time - wanted) < Math.abs(best - wanted) ? time : best, times[0]);
    cross.setAttribute("x1", x(at));
    cross.setAttribute("x2", x(at));
    cross.setAttribute("visibility", "visible");
    const rows = lines.flatMap((line, n) => {
      const found = line.points.find((point) => point[0] === at);
      return found === undefined ? [] : [element("span", { className: "key" },
        painted(element("i"), "background", colour(n)), element("span", {}, line.name), element("span", {}, spec.show(found[1])))];
    });
    tip.replaceChildren(element("b", {}, clockTime(at, data.to - data.from > 36 * 3600e3 ? "day" : true)), ...rows);
    tip.hidden = false;
    const place = x(at) / width * area.width + area.left - box.getBoundingClientRect().left;
    const flip = place > box.clientWidth * .6;
    tip.style.left = flip ? "auto" : `${place + 12}px`;
    tip.style.right = flip ? `${box.clientWidth - place + 12}px` : "auto";
    tip.style.top = "40px";
  };
  svg.onpointermove = (event) => { state.hover = [spec.title, event.clientX]; show(event.clientX); };
  svg.onpointerleave = () => { state.hover = null; tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  box.again = () => { if (state.hover?.[0] === spec.title) show(state.hover[1]); };
}

function bars(title, why, list) {
  if (list.length === 0) return nothing(title, why);
  const box = card(title, list.length > BARS_MAX ? `the ${BARS_MAX} largest of ${list.length}` : "");
  const rows = list.slice(0, BARS_MAX).map(({ name, about, text, width, tone }) => {
    const meter = shape("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      shape("rect", { class: "track", width: 100, height: 8 }),
      shape("rect", { class: `fill ${tone}`, width: Math.max(0, Math.min(100, width)), height: 8 }));
    return element("div", { className: "mount" },
      element("div", {}, element("span", { title: about }, name), element("span", {}, text)), meter);
  });
  box.append(element("div", { className: "mounts" }, ...rows));
  return box;
}

function mounts(list) {
  const rows = [...list].sort((a, b) => b.percent - a.percent).map((mount) => ({
    name: mount.path, about: `${mount.device} ${mount.fstype ?? ""}`, width: mount.percent,
    text: `${bytes(mount.used)} of ${bytes(mount.total)} · ${percent(mount.percent)}`,
    tone: mount.percent >= 90 ? "full" : mount.percent >= 75 ? "tight" : "",
  }));
  return bars("File systems now", "Agents send disk_usage by default.", rows);
}

function databases(lines) {
  const rows = lines.map((line) => ({ name: line.name, size: last(line) })).sort((a, b) => b.size - a.size);
  const largest = Math.max(1, ...rows.map((row) => row.size));
  return bars("Databases now", "Agents send pg_stats when they reach PostgreSQL.", rows.map(({ name, size }) =>
    ({ name, about: name, text: bytes(size), width: size / largest * 100, tone: "" })));
}

const last = (line) => line.points[line.points.length - 1][1];
const latest = (lines, name) => { const line = lines.find((line) => line.name === name); return line ? last(line) : null; };

function specs(charts) {
  const memory = (lines) => {
    const used = latest(lines, "used"), all = lines.reduce((sum, line) => sum + last(line), 0);
    return used === null ? "" : `${bytes(used)} of ${bytes(all)} used`;
  };
  return [
    [{ title: "CPU", stacked: true, top: 100, show: percent, tick: (v) => `${v} %`, why: "Agents send sysstat by default.",
       colours: { user: "--c0", system: "--c1", irq: "--c3", steal: "--c4", iowait: "--c2" },
       now: (lines) => `${percent(lines.reduce((sum, line) => sum + last(line), 0))} busy${charts.cores ? ` of ${charts.cores} cores` : ""}` }, charts.cpu],
    [{ title: "Load", show: plain, tick: plain, least: 1, why: "Agents send sysstat by default." }, charts.load],
    [{ title: "Memory", stacked: true, show: bytes, tick: bytes, binary: true, now: memory, why: "Agents send sysstat by default.",
       colours: { used: "--c0", cache: "--c2", free: "--rest" } }, charts.memory],
    [{ title: "Disk throughput", show: rate, tick: plain, least: .1, now: () => "MB/s", why: "Agents send sysstat by default." }, charts.disk_io],
    [{ title: "File systems, used", top: 100, show: percent, tick: (v) => `${v} %`, why: "Agents send disk_usage by default." }, charts.filesystems],
    [{ title: "Database sizes", show: bytes, tick: bytes, binary: true,
       now: (lines) => `${bytes(lines.reduce((sum, line) => sum + last(line), 0))} in ${charts.databases.length} database${charts.databases.length === 1 ? "" : "s"}`,
       why: "Agents send pg_stats when they reach PostgreSQL." }, charts.databases],
  ];
}

function showHost(data) {
  const all = Object.values(data.charts).filter(Array.isArray).flat().flatMap((line) => line.points ?? []);
  const first = all.reduce((least, point) => Math.min(least, point[0]), data.end);
  // A host that is new fills the width with what there is.
  data.from = Math.max(data.start, Math.min(first, data.end - 60e3));
  data.to = data.end;
  $("host-title").textContent = $("server").hidden ? data.server.name : "Host";
  const lost = data.lost.reduce((sum, hole) => sum + hole.records, 0);
  const notes = [];
  if (lost > 0) notes.push(`${count(lost)} records of this range are known to be lost: the dashed marks show when.`);
  if (data.cut) notes.push("The beginning of this range is not shown: it is more than the page reads. Choose a shorter one.");
  for (const refused of data.refusals) {
    notes.push(`Not taken: ${count(refused.count)} × ${refused.reason}, the last ${span(data.end - refused.last_at)} ago.`);
  }
  $("note").hidden = notes.length === 0;
  $("note").textContent = notes.join(" ");
  fit();
  const made = specs(data.charts).map(([spec, lines]) => chart(spec, lines, data));
  made.splice(5, 0, mounts(data.charts.mounts));
  made.push(databases(data.charts.databases));
  $("charts").replaceChildren(...made);
  for (const box of made) box.again?.();
}

// What is asked for, and when.
async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).message ?? `status ${answer.status}`);
  return answer.json();
}

async function refresh() {
  clearTimeout(state.timer);
  try {
    const overview = await ask("/data/overview");
    if (!overview.servers.some((server) => server.id === state.server)) state.server = overview.servers[0]?.id ?? null;
    showAgents(overview);
    const select = $("server");
    const options = overview.servers.map((server) => element("option", { value: server.id, selected: server.id === state.server }, server.brought ? `${server.name} (brought by another host's replay)` : server.name));
    if (document.activeElement !== select) select.replaceChildren(...options);
    select.hidden = overview.servers.length < 2;
    const active = overview.agents.filter((agent) => agent.status === "active").length;
    $("summary").textContent = `${count(overview.agents.length)} agent${overview.agents.length === 1 ? "" : "s"}, ${count(active)} active · backend ${overview.version}`;
    $("host").hidden = state.server === null;
    if (state.server !== null) showHost(await ask(`/data/servers/${state.server}?range=${state.range}`));
    $("live").className = "";
    $("live").textContent = `updated ${clockTime(Date.now(), true)}`;
  } catch (error) {
    $("live").className = "lost";
    $("live").textContent = `not updated: ${error.message}`;
  }
  state.timer = setTimeout(refresh, EVERY);
}

function choose(server) {
  state.server = Number(server);
  refresh();
}

function showRanges() {
  $("ranges").replaceChildren(...RANGES.map((range) => element("button", {
    type: "button", "aria-pressed": String(range === state.range),
    onclick: () => { state.range = range; showRanges(); refresh(); },
  }, range)));
}

let resized = null;
window.onresize = () => { clearTimeout(resized); resized = setTimeout(refresh, 150); };
$("server").onchange = (event) => choose(event.target.value);
showRanges();
refresh();
