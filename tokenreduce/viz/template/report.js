"use strict";
/** One picture: which of the drawings over it is seen, and what is known of a token. */
class Figure {
  constructor(node, data) {
    Object.assign(this, { node, data, here: node.querySelector(".here") });
    const frame = node.querySelector(".frame");
    for (const kind of ["pointermove", "pointerdown"])
      frame.addEventListener(kind, (event) => this.point(frame, event));
    frame.addEventListener("pointerleave", () => this.tell(-1));
  }

  set(stop, scores) {
    this.stage = this.data.stages[stop];
    this.scored = scores && Boolean(this.stage.above);
    const mode = this.scored ? "scores" : "kept";
    Object.assign(this.node.dataset, { stop, mode });
    for (const drawn of this.node.querySelectorAll(".drawn"))
      drawn.hidden = drawn.dataset.of !== `${stop} ${mode}`;
    this.tell(-1);
  }

  /** Finds the token under the pointer. */
  point(frame, event) {
    const area = frame.getBoundingClientRect(), size = frame.querySelector("svg").viewBox.baseVal;
    const x = ((event.clientX - area.left) / area.width) * size.width;
    const y = ((event.clientY - area.top) / area.height) * size.height;
    const within = ([left, top, right, bottom]) => x >= left && x < right && y >= top && y < bottom;
    this.tell(this.data.boxes.findLastIndex(within));
  }

  /** Says what is known of token `i`, and outlines it with what it was merged with; -1: none. */
  tell(i) {
    const { group, kept, above } = this.stage;
    let all = i < 0 ? [] : [i], text = "";
    if (i >= 0) {
      if (group && group[i] >= 0) all = [...group.keys()].filter((j) => group[j] === group[i]);
      const what = kept[i] === "1" ? "stays" : "dropped";
      text = `token ${this.data.tokens[i]}: ${all.length > 1 ? `one of ${all.length} merged` : what}`;
      if (above && above[i] !== null) text += `, above ${above[i]} % of the scores`;
    }
    this.here.textContent = text;
    const box = ([left, top, right, bottom]) => `M${left} ${top}H${right}V${bottom}H${left}Z`;
    this.node.querySelector("path").setAttribute("d", all.map((j) => box(this.data.boxes[j])).join(""));
  }
}

/** One question: its slider, its switch, its pictures and its chart. */
class Question {
  constructor(node) {
    const part = (name) => node.querySelector(name);
    const data = JSON.parse(part("script.data").textContent);
    Object.assign(this, { node, data, slider: part(".stop"), scores: part(".scores") });
    const figures = node.querySelectorAll(".viewer figure");
    this.figures = data.figures.map((one, i) => new Figure(figures[i], one));
    for (const input of [this.slider, this.scores])
      if (input) input.addEventListener("input", () => this.remember(this.show()));
  }

  remember(place) {
    try { history.replaceState(null, "", place); } catch { /* a viewer that forbids it */ }
  }

  /** Shows what slider and switch say; returns it as the end of an address. */
  show() {
    const { node, slider, data } = this, caption = node.querySelector(".caption");
    const stop = slider ? Number(slider.value) : 0, scores = Boolean(this.scores && this.scores.checked);
    for (const figure of this.figures) figure.set(stop, scores);
    const ranked = this.figures.some((figure) => figure.scored);
    node.querySelector(".viewer").classList.toggle("scored", scores && ranked);
    node.querySelector(".viewer").classList.toggle("unscored", scores && !ranked);
    caption.textContent = data.captions[stop] || caption.textContent;
    if (slider) slider.setAttribute("aria-valuetext", caption.textContent);
    node.querySelectorAll(".ticks li").forEach((li, i) => li.classList.toggle("on", i === stop));
    const layer = data.stages[stop] ?? -1;
    for (const bar of node.querySelectorAll(".bars li"))
      bar.classList.toggle("on", Number(bar.dataset.stage) === layer);
    return `#question=${node.dataset.question}&stop=${stop}${scores ? "&scores=1" : ""}`;
  }
}

const questions = [...document.querySelectorAll("article")].map((node) => new Question(node));

/** `#question=2&stop=1&scores=1`: without a question the rest is for all of them. */
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1)), number = asked.get("question");
  for (const question of questions) {
    const meant = number === null || number === question.node.dataset.question;
    if (meant && asked.has("stop")) {
      if (question.slider) question.slider.value = asked.get("stop");
      if (question.scores) question.scores.checked = asked.get("scores") === "1";
    }
    question.show();
    if (number !== null && meant) question.node.scrollIntoView();
  }
}
addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "yes";
