// Requests to the service: with the token where it needs one, and jobs that are followed to their end.

import { $, show } from "./dom.js";

export class RequestError extends Error {
  name = "RequestError";
}

const SILENT = "the service does not answer; is it still running?";

function send(method, path, body, signal) {
  const values = { method, headers: {}, signal };
  if (body instanceof FormData) values.body = body;
  else if (body !== undefined) {
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

let entering = null; // one dialog for all requests that wait for the token

export function login() {
  entering ??= askToken().finally(() => { entering = null; });
  return entering;
}

function askToken() {
  const dialog = $("login");
  dialog.showModal();
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

export async function call(method, path, body, signal) {
  let response;
  try {
    response = await send(method, path, body, signal);
    if (response.status === 401) {
      await login();
      response = await send(method, path, body, signal);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(SILENT);
  }
  if (response.ok) return response;
  const after = response.headers.get("Retry-After");
  throw new RequestError((await sentence(response)) + (after ? ` (in about ${after} s)` : ""));
}

export const json = async (...values) => (await call(...values)).json();

export const fileOf = (id, rest) => `v1/videos/${encodeURIComponent(id)}/${rest}`;

export const thumbnailOf = (id, seconds, height) => fileOf(id, `thumbnail?at=${seconds.toFixed(2)}&height=${height}`);

// A job of the service. `done` is a promise of the finished job; `cancel` ends it.
export class Job {
  constructor(job, onProgress) {
    this.id = job.id;
    this.events = new EventSource(`v1/jobs/${encodeURIComponent(job.id)}/events`);
    this.done = new Promise((resolve, reject) => {
      this.reject = reject;
      onProgress(job);
      this.events.addEventListener("progress", (event) => onProgress(JSON.parse(event.data)));
      this.events.addEventListener("end", (event) => {
        this.events.close();
        const ended = JSON.parse(event.data);
        if (ended.error) reject(new RequestError(ended.error.message));
        else resolve(ended);
      });
      this.events.addEventListener("error", () => {
        if (this.events.readyState === EventSource.CLOSED) reject(new RequestError(SILENT));
      });
    });
  }

  cancel() {
    this.events.close();
    call("DELETE", `v1/jobs/${encodeURIComponent(this.id)}`).catch(() => {});
    this.reject(new DOMException("cancelled", "AbortError"));
  }
}

export function showJob(job, bar, doing) {
  bar.hidden = false;
  if (job.state === "running" && job.progress !== null && job.progress < 1) bar.value = job.progress;
  else bar.removeAttribute("value");
  if (job.state === "queued") return job.position ? `Waiting; ${job.position} before this one` : "Waiting";
  if (job.progress === null) return doing;
  return job.progress < 1 ? `${doing}: ${Math.floor(100 * job.progress)} %` : "Almost done";
}

export async function saveResponse(response) {
  const name = decodeURIComponent(response.headers.get("Content-Disposition").split("''")[1]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return name;
}
