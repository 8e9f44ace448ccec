"use strict";
// The same held-out prompt's answer of the base and of the student.

const KINDS = { gained: "better now", lost: "worse now", wrong: "still wrong", right: "right before and now", same: "as before" };

const answers = {
  data: [], chosen: 0,

  start(data) {
    this.data = data.answers;
    if (!one("#answer")) return;
    for (const id of ["#answer-domain", "#answer-kind"]) one(id).addEventListener("change", () => this.draw(0));
    one("#answer-before").addEventListener("click", () => this.draw(this.chosen - 1));
    one("#answer-next").addEventListener("click", () => this.draw(this.chosen + 1));
  },

  show(data) {
    this.data = data.answers;
    const domains = [...new Set(this.data.map((pair) => pair.domain))].sort(), kinds = new Set(this.data.map((pair) => pair.kind));
    options(one("#answer-domain"), [["", "all"], ...domains.map((name) => [name, name])], one("#answer-domain").value);
    options(one("#answer-kind"), [["", "all"], ...Object.entries(KINDS).filter(([kind]) => kinds.has(kind))], one("#answer-kind").value);
    this.draw(this.chosen);
  },

  draw(index) {
    const domain = one("#answer-domain").value, kind = one("#answer-kind").value;
    const shown = this.data.filter((pair) => (!domain || pair.domain === domain) && (!kind || pair.kind === kind));
    this.chosen = shown.length ? (index + shown.length) % shown.length : 0;
    one("#answer-count").textContent = shown.length ? `${this.chosen + 1} of ${shown.length}` : "none";
    const pair = shown[this.chosen];
    const box = (text) => make("pre", { class: "text-box", tabindex: 0 }, text ?? "–");
    const scored = (score) => (score === null || score === undefined ? "" : `, score ${short(score)}`);
    one("#answer").replaceChildren(...(!pair ? [make("p", { class: "note" }, "No answer is like that.")] : [
      make("div", { class: "meta" }, make("b", {}, pair.domain), KINDS[pair.kind]),
      ...(pair.prompt ? [make("h3", {}, "Prompt"), make("pre", { class: "text-box quiet-box", tabindex: 0 }, pair.prompt)] : []),
      make("div", { class: "pair" },
        make("div", { class: "then" }, make("h3", {}, `At the start${scored(pair.base[1])}`), box(pair.base[0])),
        make("div", { class: "now" }, make("h3", {}, `Now${scored(pair.now[1])}`), box(pair.now[0]))),
      make("div", { class: "pair" },
        make("div", {}, make("h3", {}, "Reference"), box(pair.reference)),
        pair.teacher === null ? "" : make("div", {}, make("h3", {}, "Its teacher"), box(pair.teacher))),
    ]));
  },
};
