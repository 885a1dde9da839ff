// The timeline of an answer: frames, curve, moments with edges that can be moved, and the place of the player.

import { clock, element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const LANE = 36;
const SHORTEST = 0.1; // seconds

function shape(name, values) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
  return node;
}

// Keep the highest clip of each group, so that a long video has no more points than a screen.
function thinned(clips, most = 1500) {
  const size = Math.ceil(clips.length / most);
  const groups = Array.from({ length: Math.ceil(clips.length / size) }, (_, i) => clips.slice(i * size, (i + 1) * size));
  return groups.map((group) => group.reduce((best, clip) => (clip.value > best.value ? clip : best)));
}

function lanesOf(moments) {
  const ends = [];
  const order = moments.map((_, i) => i).sort((a, b) => moments[a].start - moments[b].start);
  const lanes = new Array(moments.length);
  for (const i of order) {
    let lane = ends.findIndex((end) => end <= moments[i].start);
    if (lane < 0) lane = ends.length;
    ends[lane] = moments[i].end;
    lanes[i] = lane;
  }
  return { lanes, count: Math.max(1, ends.length) };
}

export class Timeline {
  // actions: seek(seconds), choose(index), edit(index, edge, seconds), edited(index)
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.lanes = [];
  }

  show({ duration, saliency, clipSeconds, moments, thumbnail, aspect }) {
    Object.assign(this, { duration, moments, chosen: -1 });
    this.strip = element("div", { class: "strip", "aria-hidden": "true" });
    const width = Math.max(40, Math.min(160, (this.root.clientWidth < 500 ? 48 : 60) * aspect));
    const count = Math.max(2, Math.min(16, Math.round(this.root.clientWidth / width)));
    for (let i = 0; i < count; i += 1) {
      this.strip.append(element("img", { src: thumbnail(((i + 0.5) / count) * duration), alt: "", draggable: "false" }));
    }
    this.curve = this.#curve(saliency, clipSeconds);
    this.bands = element("div", { class: "lanes", role: "group", "aria-label": "Moments on the timeline" });
    this.ticks = this.#ticks();
    this.head = element("div", { class: "playhead" });
    const box = element("div", { class: "timeline" }, this.strip, this.curve, this.bands, this.ticks, this.head);
    this.root.replaceChildren(box);
    this.box = box;
    this.draw();
  }

  #curve(saliency, clipSeconds) {
    const clips = saliency.map((value, i) => ({ value, seconds: Math.min(this.duration, (i + 0.5) * clipSeconds) }));
    const shown = thinned(clips);
    const low = Math.min(...shown.map((clip) => clip.value));
    const highest = shown.reduce((best, clip) => (clip.value > best.value ? clip : best));
    const span = highest.value - low || 1;
    const points = shown.map(({ value, seconds }) => [
      (1000 * seconds) / this.duration,
      92 - ((value - low) / span) * 84,
    ]);
    points.unshift([0, points[0][1]]);
    points.push([1000, points.at(-1)[1]]);
    const line = points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join(" L ");
    const label = `Highlight curve of ${clock(this.duration)}; its highest point is at ${clock(highest.seconds)}`;
    const svg = shape("svg", { class: "curve", viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", label);
    svg.append(
      shape("path", { class: "area", d: `M 0,100 L ${line} L 1000,100 Z` }),
      shape("path", { class: "top", d: `M ${line}` }),
    );
    svg.addEventListener("click", (event) => this.actions.seek(this.#seconds(event.clientX)));
    return svg;
  }

  #ticks() {
    const row = element("div", { class: "ticks", "aria-hidden": "true" });
    const count = this.root.clientWidth < 500 ? 3 : 5;
    for (let i = 0; i < count; i += 1) {
      const part = i / (count - 1);
      const tick = element("span", {}, clock(part * this.duration, this.duration < 10 ? 1 : 0));
      tick.style.left = `${100 * part}%`;
      row.append(tick);
    }
    return row;
  }

  #seconds(x) {
    const { left, width } = this.curve.getBoundingClientRect();
    return ((x - left) / width) * this.duration;
  }

  clear() {
    this.root.replaceChildren();
    this.moments = [];
    this.head = null;
  }

  choose(index) {
    this.chosen = index;
    this.draw();
  }

  // Draw the moments anew. The focus stays where it is.
  draw() {
    const focus = document.activeElement?.dataset?.part;
    const { lanes, count } = lanesOf(this.moments);
    this.bands.style.height = `${count * LANE}px`;
    const parts = this.moments.map((moment, i) => this.#band(moment, i, lanes[i]));
    if (this.moments[this.chosen]) {
      for (const edge of ["start", "end"]) parts.push(this.#edge(edge, this.chosen, lanes[this.chosen]));
    }
    this.bands.replaceChildren(...parts);
    if (focus) this.bands.querySelector(`[data-part="${focus}"]`)?.focus();
    this.head.style.height = `${this.strip.offsetHeight + this.curve.clientHeight + 4 + count * LANE}px`;
  }

  #percent(seconds) {
    return `${(100 * seconds) / this.duration}%`;
  }

  #band(moment, i, lane) {
    const text = `${clock(moment.start)} to ${clock(moment.end)}, score ${moment.score.toFixed(2)}`;
    const band = element("button", {
      type: "button",
      class: "moment",
      "data-part": `moment-${i}`,
      "aria-pressed": String(i === this.chosen),
      "aria-label": `Play moment ${i + 1}: ${text}`,
      title: text,
      onclick: () => this.actions.choose(i),
    });
    band.textContent = String(i + 1);
    band.style.left = this.#percent(moment.start);
    band.style.width = this.#percent(moment.end - moment.start);
    band.style.top = `${lane * LANE + 3}px`;
    return band;
  }

  #edge(edge, i, lane) {
    const node = element("div", { class: `edge ${edge}`, role: "slider", tabindex: "0", "data-part": `edge-${edge}` });
    node.style.top = `${lane * LANE + 3}px`;
    this.#place(node, edge, i);
    node.addEventListener("keydown", (event) => this.#key(event, edge, i));
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      node.focus();
      const beside = this.#seconds(event.clientX) - this.moments[i][edge]; // the handle is wider than the edge
      const move = (moved) => {
        this.#edit(edge, i, this.#seconds(moved.clientX) - beside);
        this.#move(); // drawing anew would end the drag
      };
      node.addEventListener("pointermove", move);
      node.addEventListener(
        "lostpointercapture",
        () => {
          node.removeEventListener("pointermove", move);
          this.actions.edited(i);
          this.draw();
        },
        { once: true },
      );
    });
    return node;
  }

  #place(node, edge, i) {
    const moment = this.moments[i];
    const low = edge === "start" ? 0 : moment.start + SHORTEST;
    const high = edge === "start" ? moment.end - SHORTEST : this.duration;
    node.style.left = this.#percent(moment[edge]);
    const values = { valuemin: low, valuemax: high, valuenow: moment[edge] };
    for (const [name, value] of Object.entries(values)) node.setAttribute(`aria-${name}`, value.toFixed(2));
    node.setAttribute("aria-valuetext", clock(moment[edge]));
    node.setAttribute("aria-label", `${edge === "start" ? "Start" : "End"} of moment ${i + 1}`);
  }

  #move() {
    const moment = this.moments[this.chosen];
    const band = this.bands.querySelector(`[data-part="moment-${this.chosen}"]`);
    band.style.left = this.#percent(moment.start);
    band.style.width = this.#percent(moment.end - moment.start);
    for (const edge of ["start", "end"]) {
      this.#place(this.bands.querySelector(`[data-part="edge-${edge}"]`), edge, this.chosen);
    }
  }

  #key(event, edge, i) {
    const step = event.shiftKey ? 1 : 0.1;
    const steps = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageUp: 1, PageDown: -1 };
    const ends = { Home: 0, End: this.duration };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    const now = this.moments[i][edge];
    this.#edit(edge, i, event.key in ends ? ends[event.key] : now + steps[event.key]);
    this.actions.edited(i);
    this.draw();
  }

  #edit(edge, i, seconds) {
    const moment = this.moments[i];
    const low = edge === "start" ? 0 : moment.start + SHORTEST;
    const high = edge === "start" ? moment.end - SHORTEST : this.duration;
    const rounded = Math.round(seconds * 100) / 100;
    this.actions.edit(i, edge, Math.min(Math.max(rounded, low), high));
  }

  playhead(seconds) {
    if (this.head) this.head.style.left = this.#percent(Math.min(seconds, this.duration));
  }
}
