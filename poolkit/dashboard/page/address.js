// The part of the address after #: #/pool/NAME?id=ID&open=counters,settings&range=300. What is open survives a reload.
// A pool is found by its name, because its id is another one after a restart; the id tells pools of one name apart.

export const RANGES = [60, 300, 600]; // seconds of the charts

export function read(hash) {
  const [, name, query] = /^#\/(?:pool\/([^?]*))?(?:\?(.*))?$/.exec(hash) ?? [];
  const options = new URLSearchParams(query ?? "");
  const range = Number(options.get("range"));
  return {
    pool: name ? decoded(name) : null,
    id: options.get("id"),
    sections: (options.get("open") ?? "").split(",").filter(Boolean),
    range: RANGES.includes(range) ? range : RANGES.at(-1),
  };
}

export function write({ pool, id, sections, range }) {
  const options = [];
  if (pool !== null && id) options.push(`id=${encodeURIComponent(id)}`);
  if (pool !== null && sections.length) options.push(`open=${sections.map(encodeURIComponent).join(",")}`);
  if (range !== RANGES.at(-1)) options.push(`range=${range}`);
  return `#/${pool === null ? "" : `pool/${encodeURIComponent(pool)}`}${options.length ? `?${options.join("&")}` : ""}`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not written by this page
  }
}
