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
// top: the value at the upper edge, or least: what it is at least.
export function makeChart(title) {
  const figure = document.createElement("figure");
  const drawing = svg("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
  });
  const area = svg("path", { class: "area" });
  const line = svg("path", { class: "line" });
  drawing.append(svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }), area, line);
  const caption = document.createElement("figcaption");
  figure.append(drawing, caption);

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
    caption.textContent = `${title} ${text(now)}, at most ${text(highest)} in ${lengthOf(span)}`;
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
