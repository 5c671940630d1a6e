// Elements out of data. All text goes in as text, never as markup: names and errors come from elsewhere.

export function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function seconds(value) {
  if (value >= 86400) return `${(value / 86400).toFixed(1)} d`;
  if (value >= 3600) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 60) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value >= 1) return `${value.toFixed(1)} s`;
  if (value >= 0.001) return `${(value * 1000).toFixed(value >= 0.1 ? 0 : 1)} ms`;
  return value > 0 ? `${(value * 1e6).toFixed(0)} µs` : "0 ms";
}

export const percent = (share) => `${Math.round(share * 100)}%`;

export const clock = (at) => new Date(at * 1000).toLocaleTimeString();

const TITLES = 3; // names of services in the title

export function titleOf(processes) {
  const names = [...new Set(processes.filter((one) => !one.error).map((one) => one.service ?? one.program))];
  const more = names.length > TITLES ? ` and ${names.length - TITLES} more` : "";
  return names.length ? `Pools of ${names.slice(0, TITLES).join(", ")}${more}` : "Pools";
}

export function processOf(one) {
  if (one.error) return `${one.program}: ${one.error}`;
  return `${one.service ?? one.program}, process ${one.pid}, Python ${one.python}, poolkit ${one.poolkit}`;
}

// Severity, pool, text, and since when.
export function alertLine(severity, key) {
  return element("li", { class: severity, "data-key": key },
    element("span"), element("a"), element("span"), " ", element("span", { class: "quiet" }));
}

// columns: [heading, function from a row to text, or {text, class}, or an element]
export function table(caption, columns, rows, none) {
  const head = element("tr", {}, ...columns.map(([heading]) => element("th", { scope: "col", text: heading })));
  const lines = rows.map((row) =>
    element("tr", {}, ...columns.map(([, read], index) => {
      const value = read(row);
      const cell = typeof value === "object" && value !== null && !(value instanceof Node) ? value : { text: value };
      const options = index === 0 ? { scope: "row" } : {};
      if (cell.class) options.class = cell.class;
      const made = element(index === 0 ? "th" : "td", options);
      made.append(cell.text instanceof Node ? cell.text : String(cell.text ?? "–"));
      return made;
    })),
  );
  if (!rows.length) {
    lines.push(element("tr", {}, element("td", { class: "empty", colspan: columns.length, text: none })));
  }
  return element("table", {},
    element("caption", { text: caption }), element("thead", {}, head), element("tbody", {}, ...lines));
}

const number = (text) => ({ text, class: "number" });

export function leases(pool) {
  const more = pool.leases > pool.held.length ? ` (the ${pool.held.length} longest of ${pool.leases})` : "";
  return table(`Leases${more}`, [
    ["No.", (lease) => number(lease.connection_id)],
    ["Held for", (lease) => number(seconds(lease.held))],
    ["By", (lease) => lease.holder],
    ["Taken at", (lease) => lease.place ?? "not noted"],
  ], pool.held, "no connection is leased");
}

export function waiters(pool) {
  const more = pool.waiting > pool.queue.length ? ` (the ${pool.queue.length} longest of ${pool.waiting})` : "";
  return table(`Waiting callers${more}`, [
    ["Caller", (waiter) => waiter.holder],
    ["Waits for", (waiter) => number(seconds(waiter.waited))],
    ["Ahead of it", (waiter) => number(waiter.ahead)],
    ...(pool.queue.some((waiter) => waiter.key !== null) ? [["Endpoint", (waiter) => waiter.key]] : []),
  ], pool.queue, "nobody waits");
}

const BREAKERS = { closed: "good", open: "bad", "half-open": "warn" };

export function endpoints(pool) {
  const more = pool.lanes > pool.endpoints.length ? ` (${pool.endpoints.length} of ${pool.lanes})` : "";
  // a pool with endpoints by name has one without a name, too, which is seldom used
  const listed = pool.endpoints.filter((one) => one.key !== null || one.size || one.waiting || pool.endpoints.length === 1);
  return table(`Endpoints and breakers${more}`, [
    ["Endpoint", (endpoint) => endpoint.key ?? "the pool's server"],
    ["In use / open", (endpoint) => number(`${endpoint.in_use} / ${endpoint.size}`)],
    ["Waiting", (endpoint) => number(endpoint.waiting)],
    ["Breaker", (endpoint) => (pool.settings.breaker.value ? { text: endpoint.breaker, class: BREAKERS[endpoint.breaker] } : "none")],
    ["Failures in a row", (endpoint) => (endpoint.failures ? `${endpoint.failures}, the last: ${endpoint.last_connect_error}` : "none")],
  ], listed, "no endpoint yet");
}

export function settings(pool) {
  return table("Values and sources", [
    ["Setting", (one) => one.name],
    ["Value", (one) => valueOf(one.value)],
    ["Source", (one) => one.source],
  ], Object.entries(pool.settings).map(([name, one]) => ({ name, ...one })), "none");
}

function valueOf(value) {
  if (value === null) return "none";
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, one]) => `${name} ${one}`).join(", ");
}

export function counters(pool) {
  const closes = Object.entries(pool.closes).filter(([, times]) => times).map(([reason, times]) => `${times} ${reason}`);
  return table("Since the pool was created", [
    ["What", (row) => row[0]],
    ["How often", (row) => number(row[1])],
    ["Remarks", (row) => row[2] ?? ""],
  ], [
    ["leases begun", pool.acquires],
    ["acquires that waited", pool.waits],
    ["acquires that timed out", pool.timeouts, pool.timeouts_in_a_minute ? `${pool.timeouts_in_a_minute} in the last minute` : ""],
    ["connects", pool.connects],
    ["connects that failed", pool.connect_errors, pool.last_connect_error ? `the last: ${pool.last_connect_error}` : ""],
    ["checks", pool.checks],
    ["checks that failed", pool.failed_checks],
    ["connections closed", Object.values(pool.closes).reduce((sum, times) => sum + times, 0), closes.join(", ")],
    ["leaks", pool.leaks],
  ], "");
}

const NODES = { usable: "good", ejected: "bad" };

export function cluster(one, several) {
  const where = several ? `, process ${one.pid}` : "";
  return table(`${one.name} (${one.kind}${where}): ${one.leases} leases, ${one.waiting} waiting`, [
    ["Node", (node) => (node.address && node.address !== node.name ? `${node.name} at ${node.address}` : node.name)],
    ["State", (node) => ({ text: node.role ? `${node.state}, ${node.role}` : node.state, class: `number ${NODES[node.state] ?? "warn"}` })],
    ["Leases", (node) => number(`${node.leases} / ${node.places ?? "∞"}`)],
    ["Ejections", (node) => number(node.ejections)],
    ["Last error", (node) => node.last_error ?? "none"],
  ], one.nodes, "no node");
}

export function budget(one, several) {
  const where = several ? `, process ${one.pid}` : "";
  return table(`${one.name}${where}: ${one.held} of ${one.limit} connections`, [
    ["Pool", (part) => part.pool],
    ["Holds", (part) => number(part.held)],
    ["Claims", (part) => number(part.claimed)],
    ["Share", (part) => number(part.share)],
    ["Reserved", (part) => number(part.reserved)],
  ], one.pools, "no pool");
}

export function events(rows, several) {
  return table("The last ones, newest first", [
    ["When", (event) => number(clock(event.at))],
    ["What", (event) => ({ text: eventOf(event, several) })],
  ], rows, "nothing yet");
}

function eventOf(event, several) {
  const where = several ? `${event.source} (${event.pid})` : event.source;
  const times = event.times > 1 ? `, ${event.times} times` : "";
  return element("span", {},
    element("strong", { text: `${where}: ${event.event}${times}` }), " ", element("span", { class: "quiet", text: event.text }));
}
