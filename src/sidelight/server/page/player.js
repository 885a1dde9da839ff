// The player of the chosen video: plays spans, or shows frames of a file that the browser cannot play.

import { $, clock, show } from "./dom.js";
import { fileOf, thumbnailOf } from "./service.js";

const player = $("player");
let current = null;
let until = null;
let onTime = () => {};

export const isPlayable = () => !player.hidden;

export const watchTime = (action) => { onTime = action; };

export function openVideo(video) {
  current = video;
  until = null;
  $("unplayable").hidden = $("still").hidden = true;
  player.hidden = false;
  $("stage").hidden = false;
  player.poster = thumbnailOf(video.id, 0, 480);
  player.src = fileOf(video.id, "file");
  show("video-name", video.name);
  show("facts", [clock(video.duration), `${video.width} × ${video.height}`, video.codec, ...video.notes].join(" · "));
}

export function closeVideo() {
  current = null;
  player.removeAttribute("src");
  $("stage").hidden = true;
  show("facts", "");
}

export function goTo(seconds) {
  until = null;
  if (player.hidden) still(Math.min(seconds, current.duration));
  else player.currentTime = seconds;
  onTime(seconds);
}

export function pause() {
  player.pause();
}

export function playSpan(start, end) {
  goTo(start);
  if (player.hidden) return;
  until = end;
  player.play().catch(() => {}); // a browser may refuse to play before the first click
}

function still(seconds) {
  $("still").src = thumbnailOf(current.id, seconds, 480);
  $("still").alt = `Frame at ${clock(seconds)}`;
  $("still").hidden = false;
}

player.addEventListener("error", () => {
  if (!player.getAttribute("src") || !current) return;
  player.hidden = true;
  $("unplayable").hidden = false;
  still(0);
});
player.addEventListener("timeupdate", () => {
  if (!current) return;
  onTime(player.currentTime);
  if (until !== null && player.currentTime >= until) {
    until = null;
    player.pause();
  }
});
