"use strict";
const drawing = JSON.parse(document.getElementById("drawing").textContent);
const heat = drawing.heat.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
const NONE = 255; // the byte of a token without a score

/** The colour of a rank from 0 to 1. */
function colour(rank) {
  const at = rank * (heat.length - 1), low = Math.min(Math.floor(at), heat.length - 2), part = at - low;
  return [0, 1, 2].map((i) => heat[low][i] * (1 - part) + heat[low + 1][i] * part);
}

/** The colour of the group of a number: full value, saturation 0.75. */
function tint(number) {
  const turn = ((number * drawing.turn) % 1) * 6;
  return [5, 3, 1].map((n) => {
    const k = (n + turn) % 6;
    return 255 * (1 - 0.75 * Math.max(0, Math.min(k, 4 - k, 1)));
  });
}

/** How many members each group has; null where nothing is merged. */
function sizes(stage) {
  if (!stage.group) return null;
  const many = new Map();
  for (const g of stage.group) if (g >= 0) many.set(g, (many.get(g) || 0) + 1);
  return many;
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** One picture under its two canvases. */
class Figure {
  constructor(node, data) {
    this.node = node;
    this.data = data;
    this.here = node.querySelector(".here");
    [this.width, this.height] = data.size;
    this.count = data.boxes.length / 4;
    const canvas = node.querySelector(".mark");
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.point(null));
  }

  box(i) {
    return this.data.boxes.slice(4 * i, 4 * i + 4);
  }

  /** For every pixel, the sum of `value` over the tokens that see it. */
  sum(value) {
    const total = new Float32Array(this.width * this.height);
    for (let i = 0; i < this.count; i++) {
      const v = value(i);
      if (!v) continue;
      const [left, top, right, bottom] = this.box(i);
      for (let y = top; y < bottom; y++)
        for (let p = y * this.width + left, end = y * this.width + right; p < end; p++) total[p] += v;
    }
    return total;
  }

  /** Goes to a stop; what is on the screen follows with `draw`. */
  set(stop, scores) {
    this.stage = this.data.stages[stop];
    this.scored = scores && Boolean(this.stage.rank);
    this.node.dataset.stop = stop;
    this.node.dataset.mode = this.scored ? "scores" : "kept";
    this.node.dataset.kept = [...this.stage.kept].filter((bit) => bit === "1").length;
  }

  /** What only pictures that somebody sees need: a page may have hundreds. */
  prepare() {
    if (this.paint) return;
    this.paint = this.node.querySelector(".paint").getContext("2d");
    this.mark = this.node.querySelector(".mark").getContext("2d");
    for (const stage of this.data.stages) {
      stage.many = sizes(stage);
      if (stage.rank) stage.rank = bytes(stage.rank);
    }
    this.seen = this.sum(() => 1);
  }

  draw() {
    this.prepare();
    const image = this.paint.createImageData(this.width, this.height);
    if (this.scored) this.drawScores(image.data);
    else this.drawKept(image.data);
    this.paint.putImageData(image, 0, 0);
    if (!this.scored && this.stage.many) this.dots();
    this.point(null);
  }

  drawKept(out) {
    const { group, kept, many } = this.stage;
    const stays = (i) => (group ? group[i] >= 0 : kept[i] === "1");
    const bright = this.sum((i) => (stays(i) ? 1 : 0));
    for (let p = 0; p < bright.length; p++) {
      const [base, share] = this.seen[p] ? [0, bright[p] / this.seen[p]] : [128, 0];
      out[4 * p] = out[4 * p + 1] = out[4 * p + 2] = base;
      out[4 * p + 3] = 255 * (1 - drawing.dark) * (1 - share);
    }
    if (many) this.drawGroups(out);
  }

  drawGroups(out) {
    const { group, many } = this.stage, w = this.width;
    const label = new Int32Array(w * this.height).fill(-1);
    for (let i = 0; i < this.count; i++) {
      const mine = group[i] >= 0 && many.get(group[i]) > 1 ? group[i] : -1;
      const [left, top, right, bottom] = this.box(i);
      for (let y = top; y < bottom; y++) label.fill(mine, y * w + left, y * w + right);
    }
    const colours = new Map([...many.keys()].map((g) => [g, tint(g)]));
    for (let p = 0; p < label.length; p++) {
      if (label[p] < 0) continue;
      const c = colours.get(label[p]);
      for (let i = 0; i < 3; i++) out[4 * p + i] = c[i];
      out[4 * p + 3] = 255 * drawing.tint;
    }
    const line = Math.max(1, Math.floor(w / drawing.lines));
    for (let p = 0; p < label.length; p++) {
      const left = p % w >= line && label[p - line] !== label[p];
      const above = p >= line * w && label[p - line * w] !== label[p];
      if (left || above) out.fill(255, 4 * p, 4 * p + 4);
    }
  }

  /** Where merged tokens stand. */
  dots() {
    const { group, kept, many } = this.stage, c = this.paint;
    for (let i = 0; i < this.count; i++) {
      if (kept[i] !== "1" || !(many.get(group[i]) > 1)) continue;
      const [left, top, right, bottom] = this.box(i);
      c.beginPath();
      c.arc((left + right) / 2, (top + bottom) / 2, Math.max(2, Math.min((right - left) / 8, this.width / 90)), 0, 7);
      c.fillStyle = "#fff";
      c.fill();
      c.strokeStyle = "#0008";
      c.stroke();
    }
  }

  drawScores(out) {
    const { rank } = this.stage;
    const seen = this.sum((i) => (rank[i] === NONE ? 0 : 1));
    const height = this.sum((i) => (rank[i] === NONE ? 0 : rank[i] / 254));
    for (let p = 0; p < seen.length; p++) {
      const c = seen[p] ? colour(height[p] / seen[p]) : [0, 0, 0];
      for (let i = 0; i < 3; i++) out[4 * p + i] = c[i];
      out[4 * p + 3] = 255 * (seen[p] ? drawing.glow : 1 - drawing.dark);
    }
  }

  /** Says what is known of the token under the pointer, and outlines what it was merged with. */
  point(event) {
    if (!this.mark) return;
    this.mark.clearRect(0, 0, this.width, this.height);
    this.here.textContent = "";
    if (!event) return;
    const area = event.target.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * this.width;
    const y = ((event.clientY - area.top) / area.height) * this.height;
    for (let i = this.count - 1; i >= 0; i--) {
      const [left, top, right, bottom] = this.box(i);
      if (x >= left && x < right && y >= top && y < bottom) return this.tell(i);
    }
  }

  tell(i) {
    const { group, kept, many, rank } = this.stage;
    const size = group && group[i] >= 0 ? many.get(group[i]) : 0;
    let text = `token ${this.data.tokens[i]}: `;
    if (size > 1) text += `one of ${size} merged`;
    else text += kept[i] === "1" ? "stays" : "dropped";
    if (rank && rank[i] !== NONE) text += `, above ${Math.round((100 * rank[i]) / 254)} % of the scores`;
    this.here.textContent = text;
    this.mark.strokeStyle = "#fff";
    this.mark.lineWidth = Math.max(2, this.width / 320);
    for (let j = 0; j < this.count; j++) {
      if (j !== i && !(size > 1 && group[j] === group[i])) continue;
      const [left, top, right, bottom] = this.box(j);
      this.mark.strokeRect(left, top, right - left, bottom - top);
    }
  }
}

/** One question: its slider, its switch, its pictures and its chart. */
class Question {
  constructor(node) {
    this.node = node;
    this.data = JSON.parse(node.querySelector("script.data").textContent);
    this.slider = node.querySelector(".stop");
    this.scores = node.querySelector(".scores");
    this.caption = node.querySelector(".caption");
    this.viewer = node.querySelector(".viewer");
    const figures = node.querySelectorAll(".viewer figure");
    this.figures = this.data.figures.map((data, i) => new Figure(figures[i], data));
    for (const input of [this.slider, this.scores])
      if (input) input.addEventListener("input", () => this.draw(true));
  }

  /** Draws the pictures, once they are near the screen. */
  show() {
    if (!this.near || !this.stale) return;
    this.stale = false;
    for (const figure of this.figures) figure.draw();
  }

  get stop() {
    return this.slider ? Number(this.slider.value) : 0;
  }

  set(stop, scores) {
    if (this.slider && stop !== null) this.slider.value = stop;
    if (this.scores && scores !== null) this.scores.checked = scores;
    this.draw(false);
  }

  draw(remember) {
    const stop = this.stop, scores = Boolean(this.scores && this.scores.checked);
    for (const figure of this.figures) figure.set(stop, scores);
    this.stale = true;
    this.show();
    const ranked = this.figures.some((figure) => figure.scored);
    this.viewer.classList.toggle("scored", scores && ranked);
    this.viewer.classList.toggle("unscored", scores && !ranked);
    this.caption.textContent = this.data.captions[stop] || this.caption.textContent;
    if (this.slider) this.slider.setAttribute("aria-valuetext", this.caption.textContent);
    this.node.querySelectorAll(".ticks li").forEach((li, i) => li.classList.toggle("on", i === stop));
    const layer = this.data.stages[stop] ?? -1;
    for (const bar of this.node.querySelectorAll(".chart g"))
      bar.classList.toggle("on", Number(bar.dataset.stage) === layer);
    if (!remember) return;
    const place = `#question=${this.node.dataset.question}&stop=${stop}${scores ? "&scores=1" : ""}`;
    try { history.replaceState(null, "", place); } catch { /* a viewer that forbids it */ }
  }
}

const questions = [...document.querySelectorAll("article")].map((node) => new Question(node));

const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const question = questions.find((one) => one.node === entry.target);
    question.near = entry.isIntersecting;
    question.show();
  }
}, { rootMargin: "600px" });
for (const question of questions) watch.observe(question.node);
if (questions.length) questions[0].near = true; // what the page opens with need not wait

/** `#question=2&stop=1&scores=1`: without a question the rest is for all of them. */
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = asked.get("question");
  for (const question of questions) {
    const meant = number === null || number === question.node.dataset.question;
    const stop = meant && asked.has("stop") ? Number(asked.get("stop")) : null;
    const scores = meant && asked.has("stop") ? asked.get("scores") === "1" : null;
    question.set(stop, scores);
    if (number !== null && meant) question.node.scrollIntoView();
  }
}
addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "yes";
