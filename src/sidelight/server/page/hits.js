// The hits of a search of all videos, best first. A hit opens its video with its answer.

import { $, element, fail, plural, show, showNotes, times } from "./dom.js";
import { showAnswer } from "./answer.js";
import { SavePanel } from "./save.js";
import { thumbnailOf } from "./service.js";
import { actions, state } from "./state.js";
import { choose } from "./videos.js";

let hits = []; // of state.result, each with the moment of its answer, which may be edited
let open = null;

const panel = new SavePanel($("save-hits"), { answers: answersOfHits, nouns: "hits" });

const shownHits = () => hits.filter((hit) => hit.score >= actions.leastScore()
  && (!hit.answer || hit.answer.moments.includes(hit.moment)));

function answersOfHits() {
  const shown = new Set(shownHits().map((hit) => hit.moment));
  return state.result.answers
    .map((answer) => ({ ...answer, moments: answer.moments.filter((moment) => shown.has(moment)) }))
    .filter((answer) => answer.moments.length);
}

export function closeHits() {
  state.result = open = null;
  hits = [];
  $("hits").hidden = true;
  compact(false);
}

// While a hit is open, the hits are one row above its video.
function compact(isOpen) {
  $("hits").classList.toggle("compact", isOpen);
  $("back").hidden = !isOpen;
}

export function showHits(result) {
  state.result = result;
  open = null;
  hits = result.hits.map((hit) => {
    const answer = result.answers.find((one) => one.video === hit.video && hit.id);
    const moment = answer?.moments.find((one) => one.start === hit.start && one.end === hit.end);
    return { ...hit, answer, moment };
  });
  $("hits").hidden = false;
  compact(false);
  show("hits-title", result.query.startsWith("like ") ? `Moments ${result.query}` : `“${result.query}”`);
  panel.reset(state.about.formats.filter((format) => !format.one_video));
  refreshHits();
  $("hits-title").focus({ preventScroll: true });
  $("hits").scrollIntoView({ block: "nearest" });
}

const GUESSES = "Moments are the model’s best guesses, also for what is never shown. The relevance compares videos; the "
  + "score compares the moments of one video.";
const LIKELY = "How likely a hit is right was learnt from annotated queries. The score compares the moments of one video.";

// Say that there is no hit, and whether a limit hides the best one.
function noHit() {
  const { best_left_out: best, calibrated } = state.result;
  if (best === null) return actions.noMoment(hits, "in all videos");
  const how = calibrated ? `is ${Math.round(100 * best)} % likely` : `has a relevance of ${best.toFixed(2)}`;
  return `No such moment in all videos: the best guess ${how}, which is too little.`;
}

export function refreshHits() {
  if (!state.result) return;
  const shown = shownHits();
  const focus = document.activeElement?.dataset?.hit;
  const videos = new Set(shown.map((hit) => hit.id ?? hit.video)).size;
  show("hits-count", shown.length ? `${plural(shown.length, "moment")} in ${plural(videos, "video")}, best first` : "");
  show("hits-none", shown.length ? "" : noHit());
  $("show-guesses").hidden = state.result.best_left_out === null;
  show("hits-guess", state.result.calibrated ? LIKELY : GUESSES);
  showNotes($("hits-notes"), [...state.result.notes, ...shown.flatMap((hit) => hit.answer?.notes ?? [])]);
  $("hit-list").replaceChildren(...shown.map((hit, i) => hitCard(hit, i)));
  if (focus) $("hit-list").querySelector(`[data-hit="${focus}"]`)?.focus();
  $("save-all").hidden = !answersOfHits().length;
}

// A name that may break after its signs.
const breakable = (name) => name.split(/(?<=[-_. ])/).flatMap((part) => [part, document.createElement("wbr")]);

function hitCard(hit, i) {
  const moment = hit.moment ?? hit;
  const text = `${times(moment)}${moment.edited ? " *" : ""}`;
  const relevance = state.result.calibrated
    ? `${Math.round(100 * hit.relevance)} % likely` : `relevance ${hit.relevance.toFixed(2)}`;
  const numbers = `${relevance}, score ${hit.score.toFixed(2)}`;
  const image = hit.id
    ? element("img", { src: thumbnailOf(hit.id, (moment.start + moment.end) / 2, 144), alt: "", loading: "lazy" })
    : element("span", { class: "no-image" }, "not served here");
  const slash = hit.video.lastIndexOf("/") + 1;
  return element(
    "li",
    {},
    element(
      "button",
      {
        type: "button",
        class: "hit",
        "data-hit": String(i),
        "aria-current": hit === open ? "true" : undefined,
        "aria-label": `Open ${hit.video}, ${text}, ${numbers}`,
        title: hit.video,
        disabled: !hit.id || !hit.moment,
        onclick: () => openHit(hit).catch(fail),
      },
      element("span", { class: "frame" }, image, element("span", { class: "time" }, text)),
      element("span", { class: "name" }, ...breakable(hit.video.slice(slash))),
      element("span", { class: "numbers" }, numbers),
    ),
  );
}

async function openHit(hit) {
  open = hit;
  compact(true);
  refreshHits();
  $("hit-list").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  if (state.video?.id !== hit.id) await choose(hit.id);
  if (open !== hit) return; // another hit was opened meanwhile
  $("watch").hidden = false;
  showAnswer(hit.answer, { first: hit.moment, isHit: true });
  $("hits").scrollIntoView({ block: "start" });
  $("answer-title").focus({ preventScroll: true });
}

$("show-guesses").addEventListener("click", () => actions.searchSentence(state.result.query, 0));
$("back").addEventListener("click", () => {
  compact(false);
  $("hits").scrollIntoView({ block: "start" });
  ($("hit-list").querySelector("[aria-current]") ?? $("hits-title")).focus({ preventScroll: true });
});
