// The answer about the video in the player: curve, moments, their edges, and what can be done with them.

import { $, element, show, showNotes, times } from "./dom.js";
import { goTo, pause, playSpan, watchTime } from "./player.js";
import { SavePanel } from "./save.js";
import { thumbnailOf } from "./service.js";
import { actions, state } from "./state.js";
import { Timeline } from "./timeline.js";

let answer = null;
let moments = []; // those that are not hidden by their score
let chosen = -1;

const panel = new SavePanel($("save"), {
  answers: () => [{ ...answer, video: state.video.id, moments }],
  nouns: "moments of this video",
});

const timeline = new Timeline($("timeline"), {
  seek: goTo,
  choose: (i) => play(i),
  edit: (i, edge, seconds) => {
    moments[i][edge] = seconds;
    pause();
    goTo(seconds);
    listMoments();
  },
  edited: (i) => {
    moments[i].edited = true;
    listMoments();
    actions.hitsChanged();
  },
});
watchTime((seconds) => timeline.playhead(seconds));

export function closeAnswer() {
  answer = null;
  $("answer").hidden = true;
  timeline.clear();
}

// Show an answer about state.video, and play one of its moments if it is given.
export function showAnswer(newAnswer, { first = null, isHit = false } = {}) {
  answer = newAnswer;
  chosen = -1;
  $("answer").hidden = false;
  $("ask-this").hidden = !isHit || answer.query.startsWith("like ");
  show("answer-title", `“${answer.query}”`);
  panel.reset(state.about.formats);
  refreshAnswer();
  if (first) play(moments.indexOf(first));
}

export function refreshAnswer() {
  if (!answer) return;
  const least = actions.leastScore();
  const before = moments[chosen];
  moments = answer.moments.filter((moment) => moment.score >= least);
  chosen = moments.indexOf(before);
  show("none", moments.length ? "" : actions.noMoment(answer.moments, "in this video"));
  showNotes($("notes"), answer.notes ?? []);
  timeline.show({
    duration: answer.timeline.duration,
    clipSeconds: answer.timeline.clip_seconds,
    saliency: answer.saliency,
    moments,
    aspect: state.video.width / state.video.height,
    thumbnail: (seconds) => thumbnailOf(state.video.id, seconds, 96),
  });
  timeline.choose(chosen);
  listMoments();
}

$("ask-this").addEventListener("click", () => actions.askVideo(answer.query));

function listMoments() {
  const focus = document.activeElement?.dataset?.row;
  const best = Math.max(...moments.map((moment) => moment.score), 1e-9);
  $("moments").replaceChildren(...moments.map((moment, i) => momentRow(moment, i, best)));
  if (focus) $("moments").querySelector(`[data-row="${focus}"]`)?.focus();
  $("save").hidden = !moments.length;
}

function momentRow(moment, i, best) {
  const text = times(moment);
  const action = (name, label, row, onclick) => element(
    "button",
    { type: "button", class: "second small", "data-row": `${row}-${i}`, "aria-label": label, title: label, onclick },
    name,
  );
  const bar = element("div", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${Math.max(0, (100 * moment.score) / best)}%`;
  const buttons = [
    action("Cut", `Cut moment ${i + 1} into a file`, "cut", () => {
      panel.cut({ answers: [{ ...answer, video: state.video.id, moments: [moment] }] });
    }),
    action("✕", `Remove moment ${i + 1}`, "drop", () => removeMoment(i)),
  ];
  if (state.about.search && moment.end > moment.start) {
    buttons.unshift(action("Similar", `More like moment ${i + 1}: search all videos`, "like", () => actions.searchLike(moment)));
  }
  return element(
    "li",
    { class: i === chosen ? "chosen" : "" },
    element(
      "button",
      {
        type: "button",
        class: "play second",
        "data-row": `play-${i}`,
        "aria-label": `Play moment ${i + 1}, ${text}${moment.edited ? ", adjusted" : ""}`,
        onclick: () => play(i),
      },
      element("span", { class: "rank" }, String(i + 1)),
      `${text}${moment.edited ? " *" : ""}`,
    ),
    element("span", { class: "score", title: "score" }, bar, moment.score.toFixed(2)),
    element("span", { class: "actions" }, ...buttons),
  );
}

function removeMoment(i) {
  answer.moments.splice(answer.moments.indexOf(moments[i]), 1);
  moments.splice(i, 1);
  chosen = -1;
  timeline.choose(-1);
  listMoments();
  actions.hitsChanged();
  $("answer-title").focus({ preventScroll: true });
}

function play(i) {
  if (!moments[i]) return;
  chosen = i;
  timeline.choose(i);
  listMoments();
  playSpan(moments[i].start, moments[i].end);
}

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width || !answer) return;
  width = window.innerWidth;
  timeline.draw();
});
