// Small charts drawn as SVG. What they show is also said in words, in their captions.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 60;

export function svg(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// A line over time with the area below it. points: [seconds since 1970, value]; span: seconds from left to right;
// top: the value at the upper edge, or least: what it is at least. Pointing at the chart shows the value and the time there.
export function makeChart(title) {
  const figure = document.createElement("figure");
  const drawing = svg("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
  });
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "line" });
  const mark = svg("line", { class: "mark", y1: 0, y2: HEIGHT, visibility: "hidden" });
  drawing.append(svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }), area, line, mark);
  const [upper, from, to] = ["upper", "from", "to"].map((name) => {
    const label = document.createElement("span");
    label.className = `axis ${name}`;
    label.setAttribute("aria-hidden", "true");
    return label;
  });
  to.textContent = "now";
  const caption = document.createElement("figcaption");
  figure.append(upper, drawing, from, to, caption);
  let drawn = null; // what update() has drawn last
  let pointed = null; // where the pointer is, as a share of the width

  function tell() {
    const { shown, end, span, text, x, sentence } = drawn;
    mark.setAttribute("visibility", pointed === null || !shown.length ? "hidden" : "visible");
    caption.textContent = sentence;
    if (pointed === null || !shown.length) return;
    const at = end - span * (1 - pointed);
    const [time, value] = shown.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
    mark.setAttribute("x1", x(time));
    mark.setAttribute("x2", x(time));
    caption.textContent = `${title} ${text(value)} at ${new Date(time * 1000).toLocaleTimeString()}`;
  }

  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    pointed = (event.clientX - box.left) / box.width;
    if (drawn) tell();
  });
  drawing.addEventListener("pointerleave", () => {
    pointed = null;
    if (drawn) tell();
  });

  function update(points, { span, top, least, text }) {
    const end = points.length ? points[points.length - 1][0] : 0;
    const shown = points.filter(([at]) => at >= end - span);
    const highest = shown.reduce((most, [, value]) => Math.max(most, value), 0);
    const scale = top ?? Math.max(highest, least);
    const x = (at) => WIDTH * (1 - (end - at) / span);
    const y = (value) => HEIGHT - 1 - (HEIGHT - 3) * Math.min(1, value / scale);
    const path = shown.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join(" L ");
    line.setAttribute("d", path && `M ${path}`);
    area.setAttribute("d", path && `M ${x(shown[0][0]).toFixed(1)} ${HEIGHT} L ${path} L ${WIDTH} ${HEIGHT} Z`);
    const now = shown.length ? shown[shown.length - 1][1] : 0;
    upper.textContent = text(scale);
    from.textContent = `${lengthOf(span)} ago`;
    const sentence = `${title} ${text(now)}, at most ${text(highest)} in ${lengthOf(span)}`;
    drawn = { shown, end, span, text, x, sentence };
    tell();
  }

  return { figure, update };
}

const lengthOf = (span) => (span < 120 ? `${Math.round(span)} s` : `${Math.round(span / 60)} min`);

// One bar for the connections of a pool: in use, idle, on the move; the rest is free.
export function makeBar() {
  const drawing = svg("svg", { class: "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  const parts = ["in_use", "idle", "moving"].map((name) => svg("rect", { class: name, y: 0, height: 1 }));
  drawing.append(...parts);

  function update(pool) {
    const whole = Math.max(pool.max_size ?? 0, pool.size) || 1;
    const moving = pool.connecting + pool.checking + pool.resetting + pool.closing;
    let left = 0;
    [pool.in_use, pool.idle, moving].forEach((number, index) => {
      const width = (100 * number) / whole;
      parts[index].setAttribute("x", left);
      parts[index].setAttribute("width", width);
      left += width;
    });
  }

  return { drawing, update };
}
