// Save moments: as a file for another program, or cut into video files.

import { $, bytes, element, fail, plural, show } from "./dom.js";
import { call, Job, json, saveResponse, showJob } from "./service.js";

const plain = ({ start, end, score }) => ({ start, end, score });

let panels = 0;

export class SavePanel {
  // answers: returns what is saved; nouns: what that is, for labels
  constructor(root, { answers, nouns }) {
    this.root = root;
    this.answers = answers;
    this.number = ++panels;
    this.job = null;
    this.turn = 0; // of the last cut; an earlier one is cancelled
    this.#build(nouns);
  }

  #build(nouns) {
    const id = (name) => `${name}-${this.number}`;
    this.format = element("select", { id: id("format") });
    this.folder = element("input", {
      id: id("folder"), type: "text", maxlength: "1000", autocomplete: "off", placeholder: "/Users/me/Movies (optional)",
    });
    this.exact = element("select", { id: id("exact") },
      new Option("exact, encoded again", "exact"), new Option("quick copy, from the keyframe before", "copy"));
    this.status = element("p", { class: "quiet", role: "status", "aria-live": "polite", hidden: true });
    this.progress = element("progress", { max: "1", "aria-label": "Progress of the cut", hidden: true });
    this.stop = element("button", { type: "button", class: "second small", hidden: true, onclick: () => this.job?.cancel() }, "Cancel");
    this.files = element("ul", { class: "files", "aria-label": "Files that were cut" });
    const exporting = element(
      "form",
      { class: "export", "aria-label": `Export the ${nouns}` },
      element("div", {}, element("label", { for: id("format") }, "Export as"), this.format),
      element("div", {}, element("label", { for: id("folder") }, "Folder of the video, for editing programs"), this.folder),
      element("button", { type: "submit" }, "Export"),
    );
    exporting.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#export();
    });
    const button = (text, join) => element("button", { type: "button", class: "second", onclick: () => this.cut({ join }) }, text);
    const cutting = element(
      "div",
      { class: "export", role: "group", "aria-label": `Cut the ${nouns}` },
      element("div", {}, element("label", { for: id("exact") }, "Cut into video files"), this.exact),
      button("Cut all, a file each", false),
      button("Cut all into one film", true),
    );
    this.root.replaceChildren(exporting, cutting, this.status, this.progress, this.stop, this.files);
  }

  reset(formats) {
    const before = this.format.value;
    this.format.replaceChildren(...formats.map((format) => new Option(`${format.name}: ${format.summary}`, format.name)));
    if (formats.some((format) => format.name === before)) this.format.value = before;
    this.job?.cancel();
    this.files.replaceChildren();
    show(this.status, "");
  }

  async #export() {
    show("error");
    const format = this.format.value;
    const needsCurve = format === "json" || format === "report";
    const answers = this.answers().map(({ timeline, saliency, ...rest }) => ({
      ...rest,
      moments: rest.moments.map(plain),
      ...(needsCurve ? { timeline, saliency } : {}),
    }));
    try {
      const response = await call("POST", "v1/export", { format, answers, media_folder: this.folder.value.trim() });
      const notes = JSON.parse(response.headers.get("Sidelight-Notes") ?? "[]");
      show(this.status, [`Saved ${await saveResponse(response)}.`, ...notes].join(" "));
    } catch (error) {
      show(this.status, "");
      fail(error);
    }
  }

  // Cut moments, all of them unless answers are given, and offer the files.
  async cut({ answers = this.answers(), join = false }) {
    show("error");
    this.job?.cancel();
    this.files.replaceChildren();
    const body = {
      answers: answers.map(({ video, query, moments, model }) => ({ video, query, model, moments: moments.map(plain) })),
      join,
      exact: this.exact.value === "exact",
    };
    const turn = ++this.turn;
    const isLast = () => turn === this.turn;
    this.stop.hidden = false;
    try {
      const job = new Job(await json("POST", "v1/cuts", body), (now) => {
        if (isLast()) show(this.status, showJob(now, this.progress, "Cutting"));
      });
      if (isLast()) this.job = job;
      else job.cancel();
      this.#offer(await job.done);
    } catch (error) {
      if (isLast()) show(this.status, error.name === "AbortError" ? "Cancelled" : "");
      fail(error);
    } finally {
      if (isLast()) {
        this.job = null;
        this.progress.hidden = this.stop.hidden = true;
      }
    }
  }

  #offer(job) {
    const links = job.files.map((file) => element(
      "li",
      {},
      element("a", { href: `v1/cuts/${encodeURIComponent(job.id)}/${file.number}`, download: file.name }, file.name),
      ` ${[bytes(file.bytes), file.frames ? plural(file.frames, "frame") : "", ...file.notes].filter(Boolean).join(" · ")}`,
    ));
    this.files.replaceChildren(...links);
    const isOne = links.length === 1;
    show(this.status, isOne ? "The file is ready, and is being saved." : `${links.length} files are ready; they stay for an hour.`);
    if (isOne) links[0].querySelector("a").click();
    this.root.scrollIntoView({ block: "nearest" });
  }
}
