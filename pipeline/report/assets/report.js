"use strict";
// Tabs, links from one part to another, and the page that refreshes itself.

const tabs = {
  list: all('[role="tab"]'), drawn: new Set(), ready: false,

  show(id, focus = false) {
    if (!this.list.some((tab) => tab.getAttribute("aria-controls") === id)) return;
    for (const tab of this.list) {
      const chosen = tab.getAttribute("aria-controls") === id;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) tab.focus();
      if (chosen) this.reveal(tab);
      one(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
    }
    if (this.ready) history.replaceState(null, "", `#${id}`);
    if (!this.drawn.has(id)) {
      this.drawn.add(id);
      this.draw(id);
    }
  },

  /** On a phone tabs reach beyond the screen. Not by scrollIntoView, after which the Tab key goes on from there. */
  reveal(tab) {
    const row = tab.parentElement, [own, all] = [tab, row].map((each) => each.getBoundingClientRect());
    row.scrollLeft += Math.min(0, own.left - all.left) + Math.max(0, own.right - all.right);
  },

  /** What takes time is drawn when it is first looked at, and again with new data. */
  draw(id) {
    if (id === "curves") curves.show(data);
    if (id === "tokens" && one("#rollout-list") && data.rollouts?.length) rollouts.show(data);
    if (id === "answers" && one("#answer") && data.answers) answers.show(data);
  },

  start() {
    for (const tab of this.list) {
      tab.addEventListener("click", () => this.show(tab.getAttribute("aria-controls")));
      tab.addEventListener("keydown", (event) => {
        const at = this.list.indexOf(tab), last = this.list.length - 1;
        const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        this.show(this.list[to].getAttribute("aria-controls"), true);
      });
    }
    const wanted = location.hash.slice(1);
    const known = this.list.map((tab) => tab.getAttribute("aria-controls"));
    this.show(known.includes(wanted) ? wanted : known[0]);
    this.ready = true;
  },
};

/** Buttons that lead to another part: the step of a chart, a rollout and its token, answers of a kind. */
document.addEventListener("click", (event) => {
  const { step, rollout, place, answers: kind, domain } = event.target.closest?.("button.link")?.dataset ?? {};
  if (step !== undefined) {
    const width = Math.max(5, Math.round((data.steps[0]?.at(-1) ?? 100) / 20));
    curves.zoom(Math.max(0, Number(step) - width), Number(step) + width);
    one("#charts").scrollIntoView();
  } else if (rollout !== undefined) {
    tabs.show("tokens");
    one("#rollout-domain").value = "";
    rollouts.list();
    rollouts.choose(Number(rollout), place === "" ? null : Number(place));
    one("#answer-tokens")?.focus();
  } else if (kind !== undefined && one("#answer")) {
    tabs.show("answers");
    one("#answer-domain").value = domain;
    one("#answer-kind").value = kind;
    answers.draw(0);
    one("#answer-kind").focus();
  }
});

/** The page asks its server now and then; what has changed is put in place, and the reader stays where they are. */
const live = {
  tag: null,

  async ask() {
    try {
      const answer = await fetch(location.pathname, { headers: this.tag ? { "If-None-Match": this.tag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        const before = this.tag;
        this.tag = answer.headers.get("ETag");
        const text = await answer.text();
        if (before !== null) this.put(new DOMParser().parseFromString(text, "text/html"));
      }
      one("#live").textContent = `Up to date at ${new Date().toLocaleTimeString()}.`;
    } catch {
      one("#live").textContent = "The server is gone; this is its last word.";
    }
  },

  put(fresh) {
    const scroll = scrollY;
    for (const part of all("[data-live]")) {
      const now = one(`[data-live="${part.dataset.live}"]`, fresh);
      if (!now || part.contains(document.activeElement) && part.innerHTML === now.innerHTML) continue;
      const open = all("details", part).map((details) => details.open);
      part.replaceChildren(...now.childNodes);
      all("details", part).forEach((details, index) => { details.open = open[index] ?? false; });
    }
    document.title = fresh.title;
    one("#data").textContent = one("#data", fresh).textContent;
    data = read();
    for (const id of tabs.drawn) tabs.draw(id);
    scrollTo({ top: scroll });
  },

  start() {
    if (!one('meta[name="live"]')) return;
    this.ask();
    setInterval(() => document.hidden || this.ask(), 3000);
  },
};

let data = read();
document.body.append(make("div", { id: "spoken", class: "hidden", role: "status" }));
curves.start(data);
if (data.rollouts) rollouts.start(data);
if (data.answers) answers.start(data);
tabs.start();
live.start();

addEventListener("beforeprint", () => {
  curves.paper = true;
  all('[role="tabpanel"]').forEach((panel) => { panel.hidden = false; });
  all("details").forEach((details) => { details.open = true; });
  curves.show(data);
});
addEventListener("afterprint", () => {
  curves.paper = false;
  tabs.drawn.delete("curves");
  tabs.show(one('[role="tab"][aria-selected="true"]').getAttribute("aria-controls"));
});
document.documentElement.dataset.ready = "yes";
