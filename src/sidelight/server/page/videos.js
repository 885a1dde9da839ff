// The list of videos: choose one, or upload one.

import { $, fail, show } from "./dom.js";
import { closeVideo, openVideo } from "./player.js";
import { json, login, RequestError } from "./service.js";
import { actions, state } from "./state.js";

export async function listVideos(chosen) {
  const list = await json("GET", "v1/videos?limit=10000");
  const options = list.videos.map((video) => new Option(video.name, video.id));
  const first = list.total ? `choose one of ${list.total}` : "there is no video yet";
  $("videos").replaceChildren(new Option(first, ""), ...options);
  $("videos").value = chosen ?? state.video?.id ?? "";
  return list.total;
}

let choices = 0; // a video that was chosen before another one may arrive after it

// Load a video into the player. The answer about another video is hidden.
export async function choose(id) {
  const mine = ++choices;
  show("error");
  actions.stopAsking();
  actions.closeAnswer();
  state.video = null;
  $("videos").value = id;
  if (!id) {
    $("watch").hidden = true;
    closeVideo();
    return;
  }
  const video = await json("GET", `v1/videos/${encodeURIComponent(id)}`);
  if (mine !== choices) return;
  state.video = video;
  $("watch").hidden = false;
  show("hint", "");
  openVideo(video);
}

function upload(file) {
  show("error");
  const bar = $("upload");
  const form = new FormData();
  form.append("file", file, file.name);
  const request = new XMLHttpRequest(); // fetch tells no progress of an upload
  request.open("POST", "v1/videos");
  request.responseType = "json";
  request.upload.onprogress = (event) => { bar.value = event.total ? event.loaded / event.total : 0; };
  request.onloadend = async () => {
    bar.hidden = true;
    $("file").value = "";
    try {
      if (request.status === 401) {
        await login();
        upload(file);
      } else if (request.status === 201) {
        actions.setScope("one");
        await listVideos(request.response.id);
        await choose(request.response.id);
        $("query").focus();
      } else throw new RequestError(request.response?.error?.message ?? "the upload broke off");
    } catch (error) {
      fail(error);
    }
  };
  bar.hidden = false;
  bar.value = 0;
  request.send(form);
}

$("videos").addEventListener("change", () => {
  state.choosing = choose($("videos").value).catch(fail);
});
$("file").addEventListener("change", () => $("file").files[0] && upload($("file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    const file = name === "drop" ? event.dataTransfer.files[0] : null;
    if (!file) return;
    if (file.type.startsWith("image/") && state.about?.search) actions.searchImage(file);
    else if (state.about?.uploads) upload(file);
  });
}
