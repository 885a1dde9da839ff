// Small helpers for elements, messages and times.

export const $ = (name) => document.getElementById(name);

export function element(name, values = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export function show(target, text) {
  const node = typeof target === "string" ? $(target) : target;
  node.hidden = !text;
  node.textContent = text ?? "";
}

// A sentence with a capital at its start, unless it starts with the name of a file.
export const capital = (text) => (/^\S*[./]\S/.test(text) ? text : text.charAt(0).toUpperCase() + text.slice(1));

export function fail(error) {
  if (error.name === "AbortError") return;
  if (error.name !== "RequestError") console.error(error);
  show("error", capital(error.message || String(error)));
  $("error").scrollIntoView({ block: "nearest" });
}

export function showNotes(list, notes) {
  list.replaceChildren(...[...new Set(notes)].map((note) => element("li", {}, capital(note))));
}

export function clock(seconds, digits = 1) {
  const factor = 10 ** digits;
  const total = Math.round(seconds * factor) / factor;
  const whole = Math.floor(total / 60);
  const rest = (total - 60 * whole).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  if (whole < 60) return `${whole}:${rest}`;
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}:${rest}`;
}

export const times = (moment) => `${clock(moment.start)} – ${clock(moment.end)}`;

export function bytes(size) {
  if (size < 1e6) return `${Math.max(1, Math.round(size / 1e3))} kB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(1)} MB` : `${(size / 1e9).toFixed(1)} GB`;
}

export const plural = (count, noun) => (count === 1 ? `1 ${noun}` : `${count} ${noun}s`);
