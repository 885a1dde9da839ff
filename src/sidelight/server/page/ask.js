// The question: about one video or all videos, by a sentence, a moment or an image.

import { $, fail, show } from "./dom.js";
import { closeAnswer, showAnswer } from "./answer.js";
import { closeHits, showHits } from "./hits.js";
import { pause } from "./player.js";
import { Job, json, showJob } from "./service.js";
import { state } from "./state.js";

let running = null; // what stops the question that is answered now

export const scope = () => (state.about?.search && $("scope-all").checked ? "all" : "one");

export const leastScore = () => Number($("least").value);

export function setScope(name) {
  $(name === "all" ? "scope-all" : "scope-one").checked = true;
  const isAll = scope() === "all";
  $("choose").hidden = isAll;
  $("by-image").hidden = !isAll;
  show("hint", "");
  if (isAll && $("top").value === "5") $("top").value = "10";
}

// Show that work runs, with a button that stops it, and return its result; null if it failed or was stopped.
async function working(text, start) {
  stopAsking();
  const control = new AbortController();
  const mine = { stop: () => control.abort() };
  running = mine;
  show("error");
  show("status", text);
  $("progress").hidden = $("cancel").hidden = false;
  $("progress").removeAttribute("value");
  $("find").hidden = true;
  try {
    return await start(control.signal, (job) => { mine.stop = () => job.cancel(); });
  } catch (error) {
    fail(error);
    return null;
  } finally {
    if (running === mine) {
      running = null;
      $("progress").hidden = $("cancel").hidden = true;
      $("find").hidden = false;
      show("status", "");
    }
  }
}

export function stopAsking() {
  running?.stop();
}

export async function askVideo(query) {
  setScope("one");
  $("query").value = query;
  closeAnswer();
  closeHits();
  const ended = await working("Waiting", async (signal, started) => {
    const body = { video: state.video.id, query, top: Number($("top").value), async: true };
    const job = new Job(await json("POST", "v1/ground", body, signal), (now) => {
      show("status", showJob(now, $("progress"), "Reading the video"));
    });
    started(job);
    return job.done;
  });
  if (!ended) return;
  showAnswer(ended.result.answers[0]);
  $("answer-title").focus({ preventScroll: true });
  $("watch").scrollIntoView({ block: "nearest" });
}

async function searchBy(request) {
  closeHits();
  const result = await working("Searching all videos", request);
  if (!result) return;
  closeAnswer();
  $("watch").hidden = true;
  pause();
  showHits(result);
}

export const searchSentence = (query, least = null) => searchBy((signal) =>
  json("POST", "v1/search", { query, top: Number($("top").value), min_relevance: least, answers: true }, signal));

export function searchLike(moment) {
  const like = { video: state.video.id, start: moment.start, end: moment.end };
  setScope("all");
  return searchBy((signal) => json("POST", "v1/search", { like, top: Number($("top").value), answers: true }, signal));
}

export function searchImage(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  setScope("all");
  return searchBy((signal) => json("POST", `v1/search/image?top=${$("top").value}`, form, signal));
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (scope() === "one") await state.choosing;
  const query = $("query").value.trim();
  if (!query) {
    show("hint", "Type a sentence first");
    $("query").focus();
  } else if (scope() === "all") searchSentence(query);
  else if (state.video) askVideo(query);
  else {
    show("hint", "Choose a video first");
    $("videos").focus();
  }
});
$("cancel").addEventListener("click", () => {
  stopAsking();
  requestAnimationFrame(() => $("find").focus());
});
$("query").addEventListener("input", () => show("hint", ""));
$("image").addEventListener("change", () => {
  if ($("image").files[0]) searchImage($("image").files[0]);
  $("image").value = "";
});
for (const name of ["scope-all", "scope-one"]) {
  $(name).addEventListener("change", () => setScope($("scope-all").checked ? "all" : "one"));
}
$("try").addEventListener("click", () => {
  $("query").value = state.about.example;
  show("hint", "");
  $("query").focus();
});
