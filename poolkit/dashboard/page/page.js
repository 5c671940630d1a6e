// The page: asks api/state every two seconds while somebody looks at it, and puts the answer into the document.

import * as address from "./address.js";
import { makeBar, makeChart } from "./charts.js";
import * as parts from "./parts.js";

const INTERVAL = 2000; // milliseconds
const SPAN = 600; // seconds of history that are kept
const SHORTEST = 60;
const EVENTS = 20; // shown, unless all are asked for
const PATIENCE = 8000; // milliseconds for an answer

const by = (id) => document.getElementById(id);
const cards = new Map(); // pool id -> card
const history = new Map(); // pool id -> [[at, load, mean wait], ...]
const shown = new Map(); // element -> what it shows, as text
let state = null;
let wanted = address.read(location.hash);
let moved = true; // the address is new: the details get the focus when they open
let open = null; // id of the pool whose details are shown
let detail = null; // all about that pool, as soon as it has been answered
let paused = false;
let all = false; // events
let timer = 0;
let answered = 0;

// -- asking ----------------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE), ...options });
  const text = await response.text();
  let found = {};
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error(`answer ${response.status} is not the dashboard's`);
  }
  if (!response.ok) throw Object.assign(new Error(found.error ?? `answer ${response.status}`), { status: response.status });
  return found;
}

async function begin() {
  try {
    const past = await ask("api/history");
    for (const [id, points] of Object.entries(past.pools)) {
      history.set(id, points.map(([at, load, wait]) => [at, load, wait]));
    }
  } catch (error) {
    say(error);
  }
  await update();
}

async function update() {
  clearTimeout(timer);
  try {
    state = await ask("api/state");
    answered = state.at;
    show();
    await askDetail();
    say(null);
  } catch (error) {
    say(error);
  }
  if (!paused && !document.hidden) timer = setTimeout(update, INTERVAL);
}

async function askDetail() {
  const asked = open;
  if (!asked) return;
  let found = null;
  try {
    found = await ask(`api/pools/${encodeURIComponent(asked)}`);
  } catch (error) {
    if (poolOf(asked) && error.status !== 404) throw error; // 404: closed since; the next state will not have it
  }
  if (found && asked === open) {
    detail = found;
    fillDetail();
  }
}

function say(error) {
  const since = answered ? `; the page shows the state of ${parts.clock(answered)}` : "";
  const reason = error && (error.name === "TypeError" || error.name === "TimeoutError" ? "no answer" : error.message);
  setText(by("status"), error ? `${reason}${since}` : paused ? `paused at ${parts.clock(answered)}` : "live");
  by("status").classList.toggle("bad", Boolean(error));
}

// -- showing ---------------------------------------------------------------------------------------------------------

// Replaces what stands in a place only if it is another: what is selected there stays selected.
function place(node, made, ...facts) {
  const key = JSON.stringify(facts);
  if (shown.get(node) === key) return;
  shown.set(node, key);
  node.replaceChildren(...made());
}

function setText(node, text) {
  if (node.textContent === text) return;
  if (node.childNodes.length === 1 && node.firstChild.nodeType === Node.TEXT_NODE) node.firstChild.data = text;
  else node.textContent = text;
}


function show() {
  const several = state.processes.length > 1;
  setText(by("processes"), state.processes.map(parts.processOf).join(" · ") || "no process publishes its pools");
  setText(by("pool-count"), `(${state.pools.length})`);
  setText(by("title"), parts.titleOf(state.processes));
  document.title = `${state.alerts.length ? `(${state.alerts.length}) ` : ""}${by("title").textContent} · poolkit`;
  showAlerts(several);
  const now = new Set(state.pools.map((pool) => pool.id));
  for (const pool of state.pools) {
    const points = history.get(pool.id) ?? [];
    if (points.at(-1)?.[0] !== state.at) points.push([state.at, pool.load, pool.mean_wait]);
    while (points.length && points[0][0] < state.at - SPAN) points.shift();
    history.set(pool.id, points);
    if (!cards.has(pool.id)) cards.set(pool.id, makeCard(pool.id));
    cards.get(pool.id).update(pool, several);
  }
  for (const [id, card] of cards) {
    if (!now.has(id)) {
      card.root.remove();
      cards.delete(id);
      history.delete(id);
    }
  }
  const focused = document.activeElement;
  arrange(by("pools"), state.pools.map((pool) => cards.get(pool.id).root));
  if (document.activeElement !== focused && focused.isConnected) focused.focus({ preventScroll: true });
  openWanted();
  by("clusters-section").hidden = !state.clusters.length;
  place(by("clusters"), () => state.clusters.map((one) => parts.cluster(one, several)), state.clusters, several);
  by("budgets-section").hidden = !state.budgets.length;
  place(by("budgets"), () => state.budgets.map((one) => parts.budget(one, several)), state.budgets, several);
  showEvents(several);
}

// An element that is moved loses the focus, so only those in the wrong place are.
function arrange(parent, elements) {
  elements.forEach((one, index) => {
    if (parent.children[index] !== one) parent.insertBefore(one, parent.children[index] ?? null);
  });
}

// The id belongs to the address only where pools have the same name.
const idOf = (pool, id) => (state.pools.filter((one) => one.name === pool).length > 1 ? id : null);

// Opens what the address names. A pool that is not there is waited for: its service may be about to start again.
function openWanted() {
  const found = state.pools.filter((pool) => pool.name === wanted.pool);
  const pool = found.find(({ id }) => id === wanted.id) ?? found.find(({ id }) => id === open) ?? found[0];
  by("missing").hidden = wanted.pool === null || Boolean(pool);
  setText(by("missing"), by("missing").hidden ? "" : `There is no pool ${wanted.pool} now. Its details open when it appears.`);
  if ((pool?.id ?? null) !== open) showDetail(pool?.id ?? null);
  else if (pool && moved) by("detail-title").focus();
  if (pool) moved = false;
}

// Changes the address and what is shown; the browser's "back" returns from a pool.
function go(change) {
  const before = wanted.pool;
  wanted = { ...wanted, ...change };
  window.history[before === wanted.pool ? "replaceState" : "pushState"](null, "", address.write(wanted));
}

function follow() {
  by("range").value = String(wanted.range);
  for (const part of document.querySelectorAll("[data-section]")) part.open = wanted.sections.includes(part.dataset.section);
  if (state) show();
}

// The worst first, as the state has them. A line stays the same element while its numbers change, so that a screen reader
// announces an alert once.
function showAlerts(several) {
  const list = by("alerts");
  const before = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = state.alerts.map((alert) => {
    const key = `${alert.severity} ${alert.name} ${alert.id ?? `${alert.pool} ${alert.pid}`}`;
    const item = before.get(key) ?? parts.alertLine(alert.severity, key);
    const [severity, link, text, since] = item.children;
    setText(severity, `${alert.severity}: `);
    setText(link, `${alert.pool}${several ? ` (process ${alert.pid})` : ""}`);
    link.setAttribute("href", address.write({ ...wanted, pool: alert.pool, id: idOf(alert.pool, alert.id) }));
    setText(text, `: ${alert.text}`);
    setText(since, `since ${parts.clock(alert.at)}`);
    return item;
  });
  if (!items.length) items.push(before.get("none") ?? parts.element("li", { text: "none", "data-key": "none" }));
  for (const item of before.values()) if (!items.includes(item)) item.remove();
  arrange(list, items);
}

function makeCard(id) {
  const name = parts.element("h3", {});
  const phase = parts.element("p", { class: "phase" });
  const button = parts.element("button", { type: "button", "aria-expanded": "false", "aria-controls": "detail", text: "Details" });
  const words = parts.element("p", {});
  const cause = parts.element("p", { class: "cause" });
  const bar = makeBar();
  const load = makeChart("utilisation");
  const wait = makeChart("mean wait");
  const facts = ["leases/s", "longest lease", "p99 wait", "timeouts/min"].map((title) => {
    const value = parts.element("dd");
    return { value, pair: parts.element("div", {}, parts.element("dt", { text: title }), value) };
  });
  const root = parts.element("article", { class: "card", "data-pool": id },
    parts.element("div", { class: "heading" }, parts.element("div", {}, name, phase), button),
    bar.drawing, words, cause,
    parts.element("div", { class: "charts" }, load.figure, wait.figure),
    parts.element("dl", { class: "facts" }, ...facts.map((fact) => fact.pair)));
  button.addEventListener("click", () => {
    const pool = open === id ? null : poolOf(id).name;
    moved = true;
    go({ pool, id: idOf(pool, id) });
    openWanted();
  });

  function update(pool, several) {
    setText(name, several ? `${pool.name} (${pool.pid})` : pool.name);
    button.setAttribute("aria-label", `Details of ${name.textContent}`);
    button.setAttribute("aria-expanded", String(open === id));
    root.classList.toggle("open", open === id);
    const worst = state.alerts.find((alert) => alert.id === id);
    if (worst) root.dataset.severity = worst.severity;
    else delete root.dataset.severity;
    setText(phase, pool.phase === "open" ? "" : pool.phase);
    phase.hidden = pool.phase === "open";
    bar.update(pool);
    const moving = pool.connecting + pool.checking + pool.resetting + pool.closing;
    const limit = pool.max_size === null ? ", no limit" : ` of ${pool.max_size}`;
    setText(words, `${pool.in_use}${limit} in use, ${pool.idle} idle${moving ? `, ${moving} opening, checked or closing` : ""}, ${pool.waiting} waiting`);
    const told = pool.diagnosis ? [`${pool.diagnosis.cause}: ${pool.diagnosis.reason}`] : [];
    if (pool.overload_reason) told.push(`overloaded: ${pool.overload_reason}, so the newest are served first`);
    setText(cause, told.join("; "));
    cause.hidden = !told.length;
    const points = history.get(id);
    const span = Math.min(wanted.range, Math.max(SHORTEST, state.at - points[0][0]));
    load.update(points.map(([at, value]) => [at, value]), { span, top: 1, text: parts.percent });
    wait.update(points.map(([at, , value]) => [at, value]), { span, least: 0.01, text: parts.seconds });
    const values = [pool.acquires_per_second.toFixed(1), parts.seconds(pool.longest_held), parts.seconds(pool.p99_wait), String(pool.timeouts_in_a_minute)];
    values.forEach((value, index) => setText(facts[index].value, value));
  }

  return { root, update, button };
}

// Called by openWanted() only: the address says what is open.
function showDetail(id) {
  const before = open;
  open = id;
  by("detail").hidden = !id;
  setText(by("action-result"), "");
  if (id) {
    detail = null;
    fillDetail();
    by("max-size").value = poolOf(id).max_size ?? "";
    if (moved) by("detail-title").focus();
    askDetail().catch(say);
  } else {
    cards.get(before)?.button.focus();
  }
  for (const [one, card] of cards) {
    card.button.setAttribute("aria-expanded", String(one === open));
    card.root.classList.toggle("open", one === open);
  }
}

const poolOf = (id) => state.pools.find((pool) => pool.id === id);

// What the state says of the pool at once, the rest when it has been answered.
function fillDetail() {
  const pool = detail ?? poolOf(open);
  setText(by("detail-title"), `${pool.name} (${pool.kind}, process ${pool.pid})`);
  setText(by("detail-words"), `${pool.phase}; ${detail ? detail.words : "asking for its leases and settings"}`);
  by("actions").hidden = !state.actions;
  by("token-line").hidden = !state.token;
  const suspended = pool.phase === "suspended";
  document.querySelector("[data-action=suspend]").disabled = suspended;
  document.querySelector("[data-action=resume]").disabled = !suspended;
  by("detail-tables").replaceChildren(...(detail ? [parts.leases(pool), parts.waiters(pool), parts.endpoints(pool)] : []));
  by("detail-counters").replaceChildren(...(detail ? [parts.counters(pool)] : []));
  place(by("detail-settings"), () => (detail ? [parts.settings(pool)] : []), open, detail?.settings);
}

function showEvents(several) {
  const select = by("events-of");
  const sources = [...new Set(state.events.map((event) => event.source))].sort();
  if (select.value && !sources.includes(select.value)) sources.push(select.value);
  const known = [...select.options].slice(1).map((option) => option.value);
  if (known.join("\n") !== sources.join("\n")) {
    const chosen = select.value;
    select.replaceChildren(select.options[0], ...sources.map((source) => parts.element("option", { value: source, text: source })));
    select.value = chosen;
  }
  const rows = state.events.filter((event) => !select.value || event.source === select.value);
  const listed = all ? rows : rows.slice(0, EVENTS);
  place(by("events"), () => [parts.events(listed, several)], listed, several);
  by("events-all").hidden = rows.length <= EVENTS;
}

// -- acting ----------------------------------------------------------------------------------------------------------

const QUESTIONS = {
  clear: "Replace all connections of this pool? Idle ones are closed now, leased ones when they are returned.",
  suspend: "Suspend this pool? No caller gets a connection until it is resumed.",
};

async function act(action) {
  const pool = poolOf(open);
  if (!pool) return;
  if (QUESTIONS[action] && !window.confirm(`${pool.name}: ${QUESTIONS[action]}`)) return;
  const options = {};
  if (action === "suspend") options.fail_fast = by("fail-fast").checked;
  if (action === "resize") {
    if (!by("max-size").reportValidity()) return;
    options.max_size = by("max-size").valueAsNumber;
  }
  const headers = { "Content-Type": "application/json" };
  if (state.token) headers.Authorization = `Bearer ${by("token").value}`;
  const result = by("action-result");
  try {
    const done = await ask(`api/pools/${encodeURIComponent(pool.id)}/${action}`, {
      method: "POST", headers, body: JSON.stringify(options),
    });
    result.className = "good";
    setText(result, done.done);
  } catch (error) {
    result.className = "bad";
    setText(result, error.message);
  }
  await update();
}

by("actions").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => act(button.dataset.action));
}
by("max-size").addEventListener("keydown", (event) => {
  if (event.key === "Enter") act("resize");
});
by("detail-close").addEventListener("click", () => {
  go({ pool: null, id: null });
  openWanted();
});
by("alerts").addEventListener("click", ({ target }) => {
  if (!target.hash || target.hash !== location.hash) return; // otherwise the address changes
  moved = true;
  openWanted();
});
by("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address stays that of what is open
  by("pools").focus();
});
by("range").addEventListener("change", () => {
  go({ range: Number(by("range").value) });
  if (state) show();
});
for (const part of document.querySelectorAll("[data-section]")) {
  part.addEventListener("toggle", () => {
    const sections = [...document.querySelectorAll("[data-section][open]")].map((one) => one.dataset.section);
    if (sections.join() !== wanted.sections.join()) go({ sections });
  });
}
window.addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/") && location.hash) return;
  wanted = address.read(location.hash);
  moved = true;
  follow();
});
by("events-of").addEventListener("change", () => state && showEvents(state.processes.length > 1));
by("events-all").addEventListener("click", () => {
  all = !all;
  setText(by("events-all"), all ? "Show the last ones" : "Show all");
  showEvents(state.processes.length > 1);
});
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    clearTimeout(timer);
    say(null);
  } else {
    update();
  }
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) update();
});

follow();
begin();
