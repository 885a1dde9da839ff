// The page of the service: ask about a video or search all videos, look at the moments, adjust, export and cut them.

import { $, fail, show } from "./dom.js";
import { closeAnswer, refreshAnswer } from "./answer.js";
import { askVideo, leastScore, searchImage, searchLike, searchSentence, setScope, stopAsking } from "./ask.js";
import { refreshHits } from "./hits.js";
import { json } from "./service.js";
import { actions, state } from "./state.js";
import { listVideos } from "./videos.js";

// Say that there is no moment, and whether the lowest score hides some.
function noMoment(moments, where) {
  const best = Math.max(...moments.map((moment) => moment.score));
  if (!moments.length) return `No such moment ${where}.`;
  return `No such moment ${where}: the best guess scores ${best.toFixed(2)}, below the lowest score.`;
}

Object.assign(actions, {
  askVideo, closeAnswer, stopAsking, leastScore, noMoment, searchImage, searchLike, searchSentence, setScope,
  hitsChanged: refreshHits,
});

$("least").addEventListener("input", () => {
  $("least-value").textContent = leastScore().toFixed(2);
  refreshAnswer();
  refreshHits();
});

async function start() {
  state.about = await json("GET", "v1/models");
  const { model, knows, example, uploads, search } = state.about;
  show("model", `model ${model}`);
  show("knows", knows ? `The model ${model} knows ${knows}.` : "");
  $("query").placeholder = example;
  show("try", `Try “${example}”`);
  $("drop").hidden = !uploads;
  const total = await listVideos();
  $("scope").hidden = !search;
  $("scope-all-text").textContent = `All ${total} videos`;
  setScope(search ? "all" : "one");
}

start().catch(fail);
