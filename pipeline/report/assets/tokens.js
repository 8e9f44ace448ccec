"use strict";
// The token view. A rollout's numbers are whole: thousandths of a nat, tenths of a percent; -1 is none.

const STEPS = [0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 4]; // nats: where a colour begins
const shade = (nats) => STEPS.findLastIndex((least) => nats >= least) + 1;

const rollouts = {
  data: null, chosen: 0, place: null, teacher: "", order: [],

  start(data) {
    this.data = data;
    if (!one("#rollout-list")) return;
    one("#rollout-domain").addEventListener("change", () => this.list());
    one("#rollout-sort").addEventListener("change", () => this.list());
    one("#rollout-list").addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      const next = Math.min(Math.max(this.order.indexOf(this.chosen) + by, 0), this.order.length - 1);
      this.choose(this.order[next]);
    });
  },

  /** New data: the rollout that is being read stays. */
  show(data) {
    const before = this.data.rollouts[this.chosen];
    this.data = data;
    const same = before ? data.rollouts.findIndex((r) => r.step === before.step && r.domain === before.domain) : 0;
    const domains = [...new Set(data.rollouts.map((rollout) => rollout.domain))].sort();
    options(one("#rollout-domain"), [["", "all"], ...domains.map((name) => [name, name])], one("#rollout-domain").value);
    this.chosen = same >= 0 ? same : 0;
    this.list();
  },

  /** The largest divergence from any teacher at each token, in nats; null where there is none. */
  worst(rollout, teacher = "") {
    const given = Object.entries(rollout.teachers ?? {}).filter(([name]) => !teacher || name === teacher);
    return (rollout.tokens ?? []).map((_, place) => {
      const values = given.map(([, said]) => said.divergence[place] ?? -1).filter((value) => value >= 0);
      return values.length ? Math.max(...values) / 1000 : null;
    });
  },

  mean(rollout) {
    const values = this.worst(rollout).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0;
  },

  text(rollout) {
    return rollout.tokens ? rollout.tokens.map((word) => this.data.words[word]).join("") : rollout.completion ?? "";
  },

  list() {
    const domain = one("#rollout-domain").value, sort = one("#rollout-sort").value;
    const keys = { step: (r) => r.step, worst: (r) => -this.mean(r), score: (r) => r.score ?? 2 };
    const shown = this.data.rollouts.map((rollout, index) => [keys[sort](rollout), index, rollout]).filter(([, , r]) => !domain || r.domain === domain);
    shown.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    this.order = shown.map(([, index]) => index);
    one("#rollout-list").replaceChildren(...shown.map(([, index, rollout]) => {
      const nats = this.mean(rollout);
      return make("div", { role: "option", id: `rollout-${index}`, "aria-selected": false, onclick: () => this.choose(index) },
        make("span", { class: "head" }, make("b", {}, rollout.domain), `step ${rollout.step.toLocaleString("en")}`,
          rollout.tokens ? make("span", { class: `heat d${shade(nats)}`, title: `${short(nats)} nats per token` }) : null),
        make("span", { class: "text" }, this.text(rollout).slice(0, 80)));
    }));
    if (!this.order.includes(this.chosen)) this.chosen = this.order[0];
    this.choose(this.chosen, this.place, false);
  },

  choose(index, place = null, scroll = true) {
    if (index === undefined) return;
    this.chosen = index;
    for (const option of all("#rollout-list [aria-selected=true]")) option.setAttribute("aria-selected", false);
    const option = one(`#rollout-${index}`);
    option?.setAttribute("aria-selected", true);
    one("#rollout-list").setAttribute("aria-activedescendant", `rollout-${index}`);
    if (scroll) option?.scrollIntoView({ block: "nearest" });
    this.draw(this.data.rollouts[index], place);
  },

  draw(rollout, place) {
    const names = Object.keys(rollout.teachers ?? {});
    if (!names.includes(this.teacher)) this.teacher = "";
    const teacher = make("select", { onchange: (event) => { this.teacher = event.target.value; this.draw(rollout, this.place); } });
    options(teacher, [["", "the one that disagrees most"], ...names.map((name) => [name, name])], this.teacher);
    const stage = one("#rollout");
    stage.replaceChildren(
      make("div", { class: "meta" }, make("b", {}, rollout.domain), `step ${rollout.step.toLocaleString("en")}`,
        rollout.score === null || rollout.score === undefined ? null : make("span", {}, "score ", make("b", {}, short(rollout.score))),
        rollout.finish === "length" ? make("span", { class: "badge half" }, "cut off") : null,
        rollout.writer && rollout.writer !== "student" ? make("span", { class: "badge half" }, `written by ${rollout.writer}`) : null,
        names.length > 1 ? make("label", {}, "coloured by ", teacher) : names.length ? `teacher ${names[0]}` : null));
    const texts = make("div", {}, make("h3", {}, "Prompt"), make("pre", { class: "text-box quiet-box", tabindex: 0 }, rollout.prompt ?? ""),
      make("h3", {}, "The student wrote"));
    if (rollout.tokens) texts.append(this.scale(), this.tokens(rollout));
    else texts.append(make("pre", { class: "text-box", tabindex: 0 }, this.text(rollout)), make("p", { class: "note" }, "No numbers of its tokens were kept."));
    if (rollout.reference) texts.append(make("h3", {}, "Reference"), make("pre", { class: "text-box quiet-box", tabindex: 0 }, rollout.reference));
    for (const [name, said] of Object.entries(rollout.judgments ?? {})) texts.append(this.judgment(name, said));
    stage.append(rollout.tokens ? make("div", { class: "reading" }, texts, make("div", { class: "choices", id: "choices", role: "region", "aria-label": "Choices at this token", "aria-live": "polite", tabindex: 0 })) : texts);
    if (rollout.tokens) this.point(rollout, place ?? this.hardest(rollout), false);
  },

  scale() {
    return make("div", { class: "scale" }, "disagreement, nats: ", make("i", {}, `< ${STEPS[0]}`),
      STEPS.map((least, index) => make("i", { class: `d${index + 1}` }, `${least}`)));
  },

  tokens(rollout) {
    const nats = this.worst(rollout, this.teacher);
    const parts = new Map((rollout.parts ?? []).map(([kind, first, last]) => [first, [kind, last]]));
    const box = make("div", { class: "text-box tokens", role: "listbox", "aria-label": "The answer's tokens", "aria-orientation": "horizontal", tabindex: 0, id: "answer-tokens",
      onkeydown: (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        this.point(rollout, Math.min(Math.max(this.place + by, 0), rollout.tokens.length - 1));
      } });
    let kind = "answer";
    rollout.tokens.forEach((word, place) => {
      if (parts.has(place)) kind = parts.get(place)[0];
      const text = this.data.words[word];
      const classes = [nats[place] === null ? "" : `d${shade(nats[place])}`, this.differs(rollout, place) ? "other" : "", kind === "answer" ? "" : "part"];
      box.append(make("span", { role: "option", id: `token-${place}`, "aria-selected": false, class: classes.join(" ").trim() || null,
        "aria-label": `${visible(text)}, ${nats[place] === null ? "not scored" : `${short(nats[place])} nats`}`,
        onmouseenter: () => this.point(rollout, place, false), onclick: () => this.point(rollout, place) },
      ...(/^\s*\n\s*$/.test(text) ? [make("span", { class: "sign" }, "⏎"), text] : [text || make("span", { class: "sign" }, "∅")])));
    });
    return box;
  },

  differs(rollout, place) {
    return Object.entries(rollout.teachers).some(([name, said]) => {
      if (this.teacher && name !== this.teacher) return false;
      const row = said.top.find(([at]) => at === place);
      return row && row[1] !== rollout.tokens[place];
    });
  },

  hardest(rollout) {
    const nats = this.worst(rollout, this.teacher).map((value) => value ?? -1);
    return nats.indexOf(Math.max(...nats));
  },

  point(rollout, place, move = true) {
    if (place < 0 || place >= rollout.tokens.length) return;
    this.place = place;
    for (const token of all("#answer-tokens [aria-selected=true]")) token.setAttribute("aria-selected", false);
    const token = one(`#token-${place}`);
    token.setAttribute("aria-selected", true);
    one("#answer-tokens").setAttribute("aria-activedescendant", token.id);
    if (move) token.scrollIntoView({ block: "nearest" });
    const word = rollout.tokens[place], log = rollout.logprobs[place] ?? -1;
    const names = Object.keys(rollout.teachers).filter((name) => !this.teacher || name === this.teacher);
    const tables = names.map((name) => this.table(rollout, name, place)).filter(Boolean);
    one("#choices").replaceChildren(
      make("p", {}, make("b", {}, make("span", { class: "token mono" }, visible(this.data.words[word]))), ` token ${place + 1} of ${rollout.tokens.length}`,
        log >= 0 ? `; the student gave it ${this.percent(Math.exp(-log / 1000))}` : ""),
      tables.length ? make("div", { class: "both" }, tables)
      : make("p", { class: "note" }, "Choices are kept where teachers disagree most; at this token there are none.",
        names.map((name) => { const given = rollout.teachers[name].logprobs[place] ?? -1; return given >= 0 ? ` ${name} gave it ${this.percent(Math.exp(-given / 1000))}.` : ""; })));
  },

  /** Both sides' choices in one table, the teacher's order first; the token that was written is always in it. */
  table(rollout, name, place) {
    const pairs = (row) => new Map(Array.from({ length: ((row?.length ?? 1) - 1) / 2 }, (_, i) => [row[1 + 2 * i], row[2 + 2 * i] / 1000]));
    const said = rollout.teachers[name], row = said.top.find(([at]) => at === place);
    const teacher = pairs(row), student = pairs(rollout.top.find(([at]) => at === place));
    if (!teacher.size && !student.size) return null;
    const written = rollout.tokens[place];
    for (const [side, logs] of [[teacher, said.logprobs], [student, rollout.logprobs]]) {
      if (!side.has(written) && (logs[place] ?? -1) >= 0) side.set(written, Math.exp(-logs[place] / 1000));
    }
    const counts = (word) => word === written || Math.max(teacher.get(word) ?? 0, student.get(word) ?? 0) >= 0.0005;
    const words = [...new Set([...teacher.keys(), ...student.keys()])].filter(counts);
    const bar = (side, value) => make("div", { class: `bar ${side}` }, value === undefined ? "" : this.width(make("i"), value), value === undefined ? "–" : this.percent(value));
    const nats = said.divergence[place] ?? -1;
    return make("table", {},
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, name), make("th", { scope: "col" }, nats >= 0 ? `${short(nats / 1000)} nats` : ""), make("th", { scope: "col" }, "student"))),
      make("tbody", {}, words.map((word) => make("tr", { class: word === written ? "taken" : null },
        make("td", {}, bar("left", teacher.get(word))),
        make("td", {}, make("span", { class: "token mono" }, visible(this.data.words[word])), word === written ? make("span", { class: "hidden" }, " (written)") : null),
        make("td", {}, bar("right", student.get(word)))))));
  },

  width(element, value) {
    element.style.width = `${(62 * value).toFixed(1)}%`;
    return element;
  },

  percent: (value) => (value >= 0.995 ? `${(100 * value).toFixed(1)}%` : value >= 0.01 ? `${(100 * value).toFixed(0)}%` : value >= 0.0005 ? `${(100 * value).toFixed(1)}%` : "< 0.1%"),

  judgment(name, said) {
    const tags = { gone: "del", new: "ins", same: "span" };
    return make("div", { class: "judgment" }, make("h3", {}, `${name} said`),
      said.score === null || said.score === undefined ? null : make("p", {}, "score ", make("span", { class: "score" }, short(said.score))),
      said.feedback ? make("blockquote", {}, said.feedback) : null,
      said.changes ? make("pre", { class: "text-box", "aria-label": "The correction", tabindex: 0 }, said.changes.map(([kind, text]) => make(tags[kind], {}, text))) : null);
  },
};
