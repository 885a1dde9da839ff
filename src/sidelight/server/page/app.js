// The page of the service: choose or upload a video, ask, look at the moments, adjust and export them.

import { clock, Timeline } from "./timeline.js";

const $ = (name) => document.getElementById(name);
const state = { video: null, answer: null, moments: [], chosen: -1, until: null, events: null, job: null };
const player = $("player");

// requests ------------------------------------------------------------------------------------------------------------

class RequestError extends Error {}

function login() {
  const dialog = $("login");
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    $("login-form").onsubmit = async (event) => {
      event.preventDefault();
      const response = await send("POST", "v1/session", { token: $("token").value });
      if (response.ok) {
        dialog.close();
        resolve();
      } else show("login-error", await sentence(response));
    };
  });
}

function send(method, path, body) {
  const values = { method, headers: {} };
  if (body !== undefined) {
    values.headers["Content-Type"] = "application/json";
    values.body = JSON.stringify(body);
  }
  return fetch(path, values);
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the service answered ${response.status}`;
  }
}

async function call(method, path, body) {
  let response;
  try {
    response = await send(method, path, body);
    if (response.status === 401) {
      await login();
      response = await send(method, path, body);
    }
  } catch {
    throw new RequestError("the service does not answer; is it still running?");
  }
  if (response.ok) return response;
  const after = response.headers.get("Retry-After");
  throw new RequestError((await sentence(response)) + (after ? ` (in about ${after} s)` : ""));
}

const fileOf = (video, rest) => `v1/videos/${encodeURIComponent(video.id)}/${rest}`;

// messages ------------------------------------------------------------------------------------------------------------

function show(name, text) {
  $(name).hidden = !text;
  $(name).textContent = text ?? "";
}

function fail(error) {
  if (!(error instanceof RequestError)) console.error(error);
  const text = error.message || String(error);
  show("error", text.charAt(0).toUpperCase() + text.slice(1));
}

// videos --------------------------------------------------------------------------------------------------------------

async function listVideos(chosen) {
  const list = await (await call("GET", "v1/videos?limit=10000")).json();
  const options = list.videos.map((video) => new Option(video.name, video.id));
  const first = list.total ? `choose one of ${list.total}` : "there is no video yet";
  $("videos").replaceChildren(new Option(first, ""), ...options);
  $("videos").value = chosen ?? state.video?.id ?? "";
}

async function choose(id) {
  show("error");
  stopAsking();
  $("answer").hidden = true;
  state.video = null;
  $("find").disabled = true;
  player.removeAttribute("src");
  if (!id) {
    $("stage").hidden = true;
    show("facts", "");
    return;
  }
  const video = await (await call("GET", `v1/videos/${encodeURIComponent(id)}`)).json();
  state.video = video;
  $("unplayable").hidden = true;
  $("still").hidden = true;
  player.hidden = false;
  $("stage").hidden = false;
  player.poster = fileOf(video, "thumbnail?at=0&height=480");
  player.src = fileOf(video, "file");
  show("facts", [clock(video.duration), `${video.width} × ${video.height}`, video.codec, ...video.notes].join(" · "));
  $("find").disabled = false;
}

player.addEventListener("error", () => {
  if (!player.getAttribute("src") || !state.video) return;
  player.hidden = true;
  $("unplayable").hidden = false;
  still(0);
});

function still(seconds) {
  $("still").src = fileOf(state.video, `thumbnail?at=${seconds.toFixed(2)}&height=480`);
  $("still").alt = `Frame at ${clock(seconds)}`;
  $("still").hidden = false;
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

$("videos").addEventListener("change", () => choose($("videos").value).catch(fail));
$("file").addEventListener("change", () => $("file").files[0] && upload($("file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && !$("drop").hidden && event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });
}

// questions -----------------------------------------------------------------------------------------------------------

function stopAsking() {
  state.events?.close();
  state.events = state.job = null;
  $("progress").hidden = $("cancel").hidden = true;
  $("find").hidden = false;
  show("status", "");
}

function progressOf(job) {
  const before = job.position;
  if (job.state === "queued") {
    show("status", before ? `Waiting; ${before} before this one` : "Waiting for the model");
  } else show("status", "Looking through the video");
  $("progress").hidden = false;
  if (job.state === "running" && job.progress !== null) $("progress").value = job.progress;
  else $("progress").removeAttribute("value");
}

async function ask() {
  show("error");
  stopAsking();
  $("find").hidden = true;
  $("cancel").hidden = false;
  try {
    const body = { video: state.video.id, query: $("query").value, top: Number($("top").value), async: true };
    const job = await (await call("POST", "v1/ground", body)).json();
    state.job = job.id;
    progressOf(job);
    const events = new EventSource(`v1/jobs/${encodeURIComponent(job.id)}/events`);
    state.events = events;
    events.addEventListener("progress", (event) => progressOf(JSON.parse(event.data)));
    events.addEventListener("end", (event) => {
      stopAsking();
      const ended = JSON.parse(event.data);
      if (ended.result) showAnswer(ended.result.answers[0]);
      else fail(new RequestError(ended.error.message));
    });
    events.addEventListener("error", () => {
      if (events.readyState !== EventSource.CLOSED) return;
      stopAsking();
      fail(new RequestError("the service does not answer; is it still running?"));
    });
  } catch (error) {
    stopAsking();
    fail(error);
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.video) ask();
});
$("cancel").addEventListener("click", () => {
  const job = state.job;
  stopAsking();
  if (job) call("DELETE", `v1/jobs/${encodeURIComponent(job)}`).catch(() => {});
  $("find").focus();
});

// answers -------------------------------------------------------------------------------------------------------------

const timeline = new Timeline($("timeline"), {
  seek: (seconds) => goTo(seconds),
  choose: (i) => play(i),
  edit: (i, edge, seconds) => {
    state.moments[i][edge] = seconds;
    player.pause();
    goTo(seconds);
    listMoments();
  },
  edited: (i) => {
    state.moments[i].edited = true;
    listMoments();
  },
});

function showAnswer(answer) {
  Object.assign(state, { answer, moments: answer.moments.map((moment) => ({ ...moment })), chosen: -1, until: null });
  $("answer").hidden = false;
  show("answer-title", `“${answer.query}”`);
  const notes = [...(answer.notes ?? [])];
  if (!state.moments.length) notes.unshift("There is no such moment in this video.");
  $("notes").replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note.charAt(0).toUpperCase() + note.slice(1);
    return item;
  }));
  timeline.show({
    duration: answer.timeline.duration,
    clipSeconds: answer.timeline.clip_seconds,
    saliency: answer.saliency,
    moments: state.moments,
    aspect: state.video.width / state.video.height,
    thumbnail: (seconds) => fileOf(state.video, `thumbnail?at=${seconds.toFixed(2)}&height=96`),
  });
  listMoments();
  show("exported", "");
  const count = state.moments.length === 1 ? "1 moment" : `${state.moments.length} moments`;
  show("status", `${count} by the model ${answer.model}; these are its best guesses`);
  $("answer-title").focus({ preventScroll: true });
  $("answer").scrollIntoView({ block: "nearest" });
}

function listMoments() {
  const focus = document.activeElement?.dataset?.row;
  const best = Math.max(...state.moments.map((moment) => moment.score), 1e-9);
  $("moments").replaceChildren(...state.moments.map((moment, i) => {
    const row = document.createElement("li");
    row.className = i === state.chosen ? "chosen" : "";
    const times = `${clock(moment.start)} – ${clock(moment.end)}`;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "play second";
    button.dataset.row = `play-${i}`;
    button.textContent = `${i + 1}  ▶  ${times}${moment.edited ? " *" : ""}`;
    button.setAttribute("aria-label", `Play moment ${i + 1}, ${times}${moment.edited ? ", adjusted" : ""}`);
    button.onclick = () => play(i);
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.append(document.createElement("span"));
    bar.firstChild.style.width = `${Math.max(0, (100 * moment.score) / best)}%`;
    const score = document.createElement("span");
    score.className = "score";
    score.textContent = moment.score.toFixed(2);
    score.title = "score";
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "drop-it second";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Remove moment ${i + 1}`);
    remove.onclick = () => removeMoment(i);
    row.append(button, bar, score, remove);
    return row;
  }));
  if (focus) $("moments").querySelector(`[data-row="${focus}"]`)?.focus();
  $("export").hidden = !state.moments.length;
}

function removeMoment(i) {
  state.moments.splice(i, 1);
  state.chosen = -1;
  timeline.choose(-1);
  listMoments();
  $("answer-title").focus({ preventScroll: true });
}

function goTo(seconds) {
  state.until = null;
  if (player.hidden) still(Math.min(seconds, state.video.duration));
  else player.currentTime = seconds;
  timeline.playhead(seconds);
}

function play(i) {
  state.chosen = i;
  timeline.choose(i);
  listMoments();
  goTo(state.moments[i].start);
  if (player.hidden) return;
  state.until = state.moments[i].end;
  player.play().catch(() => {}); // a browser may refuse to play before the first click
}

player.addEventListener("timeupdate", () => {
  timeline.playhead(player.currentTime);
  if (state.until !== null && player.currentTime >= state.until) {
    state.until = null;
    player.pause();
  }
});
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width || $("answer").hidden || !state.answer) return;
  width = window.innerWidth;
  timeline.draw();
});

// exports -------------------------------------------------------------------------------------------------------------

$("export").addEventListener("submit", async (event) => {
  event.preventDefault();
  show("error");
  try {
    const moments = state.moments.map(({ start, end, score }) => ({ start, end, score }));
    const answers = [{ ...state.answer, video: state.video.id, moments }];
    const body = { format: $("format").value, answers, media_folder: $("folder").value.trim() };
    const response = await call("POST", "v1/export", body);
    const name = decodeURIComponent(response.headers.get("Content-Disposition").split("''")[1]);
    const notes = JSON.parse(response.headers.get("Sidelight-Notes") ?? "[]");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    show("exported", [`Saved ${name}.`, ...notes].join(" "));
  } catch (error) {
    show("exported", "");
    fail(error);
    $("error").scrollIntoView({ block: "nearest" });
  }
});

async function start() {
  const about = await (await call("GET", "v1/models")).json();
  show("model", `model ${about.model}`);
  $("format").replaceChildren(...about.formats.map((format) => new Option(`${format.name}: ${format.summary}`, format.name)));
  $("drop").hidden = !about.uploads;
  await listVideos();
}

start().catch(fail);
