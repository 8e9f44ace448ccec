"use strict";
// Curves: one uPlot each, all with the same range of steps and the same cursor.

const THEMES = {
  light: { ink: "#5a5e67", grid: "#ece9e2", lines: ["#0072b2", "#d55e00", "#00805e", "#b14a86", "#8f6b00", "#3a3f4a"] },
  dark: { ink: "#a5a9b2", grid: "#2b2f37", lines: ["#56b4e9", "#ff9a57", "#3dd6a8", "#f0a3cf", "#e8c547", "#d5d8de"] },
};
const DASHES = [[], [8, 4], [2, 3]]; // beyond six curves: the same colours, dashed, then dotted
const MARKS = { checkpoint: ["", "#8b8f98"], guard: ["▼", "#d07a00"], rollback: ["↺", "#b14a86"], fault: ["✕", "#d0431b"] };

const curves = {
  data: null, plots: [], range: null, smoothing: 0.6, log: false, marks: true, off: new Set(), large: new Set(), paper: false,

  theme() {
    return THEMES[!this.paper && matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"];
  },

  /** Puts the charts of `data` in place of those that are there; range and choices stay. */
  show(data) {
    this.data = data;
    this.plots.forEach((plot) => plot.u.destroy());
    this.plots = [];
    const place = one("#charts");
    const names = this.shared(data.charts);
    const groups = new Map();
    for (const chart of data.charts) groups.set(chart.group, [...(groups.get(chart.group) ?? []), chart]);
    place.replaceChildren();
    for (const [group, charts] of groups) {
      const grid = make("div", { class: "grid" });
      place.append(make("h3", {}, group), grid);
      for (const chart of charts) this.add(grid, chart, this.styles(chart, names));
    }
    if (!data.charts.length) place.append(make("p", { class: "note" }, "No step is done yet."));
    if (this.range) this.zoom(...this.range);
  },

  /** Names that several charts have, such as those of domains and teachers. */
  shared(charts) {
    const counts = new Map();
    for (const { curves } of charts) for (const { name } of curves) counts.set(name, (counts.get(name) ?? 0) + 1);
    return [...counts.keys()].filter((name) => counts.get(name) > 1);
  },

  /** A shared name has the same colour in every chart, unless two in one chart would share it. */
  styles(chart, names) {
    const { lines } = this.theme();
    const places = chart.curves.map((curve) => names.indexOf(curve.name));
    const many = places.length > lines.length;
    const clash = new Set(places.map((place) => (many ? place : place % lines.length))).size < places.length;
    return chart.curves.map((curve, index) => {
      const number = clash || places.includes(-1) ? index : many ? places[index] : places[index] % lines.length;
      return { color: lines[number % lines.length], dash: DASHES[Math.floor(number / lines.length) % DASHES.length] };
    });
  },

  add(grid, chart, styles) {
    const plot = make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": `${chart.title}. ${chart.summary}` });
    const keys = make("div", { class: "keys" });
    const card = make("article", { class: "chart", "data-chart": chart.id },
      make("header", {}, make("h4", {}, chart.title, chart.unit ? make("span", {}, ` ${chart.unit}`) : null),
        make("button", { type: "button", "aria-pressed": this.large.has(chart.id), "aria-label": `Enlarge ${chart.title}`,
          onclick: () => this.enlarge(chart.id) }, "⤢")),
      chart.note ? make("p", { class: "note" }, chart.note) : null, plot, keys);
    card.classList.toggle("large", this.large.has(chart.id));
    grid.append(card);
    const made = { chart, styles, card, keys, values: [] };
    made.u = new uPlot(this.options(made, plot), this.columns(chart), plot);
    this.plots.push(made);
    chart.curves.forEach((curve, index) => {
      const hidden = () => this.off.has(`${chart.id}/${curve.name}`);
      const value = make("b");
      const key = make("button", { type: "button", "aria-pressed": !hidden(), onclick: () => {
        hidden() ? this.off.delete(`${chart.id}/${curve.name}`) : this.off.add(`${chart.id}/${curve.name}`);
        key.setAttribute("aria-pressed", !hidden());
        this.reveal(made);
      } }, this.swatch(styles[index]), curve.name, value);
      made.values.push(value);
      keys.append(key);
    });
    this.reveal(made);
    this.tell(made);
    plot.addEventListener("keydown", (event) => this.key(event, made));
    new ResizeObserver(() => plot.clientWidth && made.u.setSize(this.size(made, plot))).observe(plot);
  },

  size: (made, plot) => ({ width: Math.max(plot.clientWidth, 80), height: made.card.classList.contains("large") ? 380 : 200 }),

  options(made, plot) {
    const { ink, grid } = this.theme();
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = (faint) => made.chart.curves.map((curve, index) => ({
      label: curve.name, stroke: made.styles[index].color, dash: faint ? [] : made.styles[index].dash, spanGaps: true,
      width: faint ? 1 : 2, alpha: faint ? 0.28 : 1, show: !(faint && curve.points),
      points: { show: !faint && curve.points, size: 7, fill: made.styles[index].color },
    }));
    return {
      ...this.size(made, plot),
      padding: [10, 18, 0, 0],
      legend: { show: false },
      cursor: {
        y: false, points: { size: 7 }, drag: { x: true, y: false, setScale: false },
        sync: { key: "steps", setSeries: false, scales: ["x", null] }, bind: { dblclick: () => () => this.zoom() },
      },
      scales: { x: { time: false }, y: { distr: this.log && this.positive(made.chart) ? 3 : 1 } },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) }],
      series: [{}, ...series(true), ...series(false)],
      hooks: {
        setSelect: [(u) => {
          if (u.select.width > 4) this.zoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
        setCursor: [() => this.tell(made)],
        drawAxes: [(u) => this.marks && this.mark(u)],
      },
    };
  },

  positive: (chart) => chart.curves.every((curve) => curve.values.every((value) => value === null || value > 0)),

  columns(chart) {
    const raw = chart.curves.map((curve) => curve.values);
    return [this.data.steps[chart.x], ...raw, ...chart.curves.map((curve) => (curve.points ? curve.values : this.smooth(curve.values)))];
  },

  /** An exponential mean, without a bias towards its first value. */
  smooth(values) {
    let mean = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = this.smoothing * mean + (1 - this.smoothing) * value;
      weight = this.smoothing * weight + (1 - this.smoothing);
      return mean / weight;
    });
  },

  swatch({ color, dash }) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ width: 22, height: 8, "aria-hidden": true })) svg.setAttribute(name, value);
    for (const [name, value] of Object.entries({ x1: 1, x2: 21, y1: 4, y2: 4, stroke: color, "stroke-width": 3, "stroke-dasharray": dash.join(" ") })) line.setAttribute(name, value);
    svg.append(line);
    return svg;
  },

  reveal({ u, chart }) {
    chart.curves.forEach((curve, index) => {
      const show = !this.off.has(`${chart.id}/${curve.name}`);
      u.setSeries(1 + index, { show: show && !curve.points });
      u.setSeries(1 + chart.curves.length + index, { show });
    });
  },

  /** Beside each name its value under the cursor; without a cursor, its last. */
  tell({ u, chart, values, card }) {
    const at = u?.cursor.idx;
    chart.curves.forEach((curve, index) => {
      if (values[index]) values[index].textContent = short(at === null || at === undefined ? curve.values.findLast((v) => v !== null) : curve.values[at]);
    });
    card.dataset.step = at === null || at === undefined ? "" : this.data.steps[chart.x][at];
  },

  zoom(min, max) {
    this.range = min === undefined ? null : [min, max];
    for (const { u } of this.plots) {
      const x = u.data[0];
      const [low, high] = this.range ?? [x[0], x[x.length - 1]];
      u.setScale("x", { min: low, max: high === low ? low + 1 : high });
    }
    one("#charts").dataset.range = this.range ? this.range.map(Math.round).join("-") : "";
  },

  key(event, { u }) {
    const x = u.data[0], { min, max } = u.scales.x, at = u.cursor.idx;
    const middle = at === null || at === undefined ? (min + max) / 2 : x[at];
    const by = (factor) => this.zoom(Math.max(x[0], middle - (middle - min) * factor), Math.min(x[x.length - 1], middle + (max - middle) * factor));
    const to = (index) => {
      const place = Math.min(Math.max(index, 0), x.length - 1);
      u.setCursor({ left: u.valToPos(x[place], "x"), top: 10 }, true, true);
      this.say(u, place);
    };
    const step = event.shiftKey ? 10 : 1;
    const actions = {
      "+": () => by(0.5), "=": () => by(0.5), "-": () => by(2), 0: () => this.zoom(), Escape: () => this.zoom(),
      ArrowRight: () => to((at ?? -1) + step), ArrowLeft: () => to((at ?? x.length) - step), Home: () => to(0), End: () => to(x.length - 1),
    };
    if (event.key in actions && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      actions[event.key]();
    }
  },

  say(u, place) {
    const plot = this.plots.find((made) => made.u === u);
    const said = plot.chart.curves.map((curve) => `${curve.name} ${short(curve.values[place])}`).join(", ");
    one("#spoken").textContent = `step ${u.data[0][place]}: ${said}`;
  },

  /** Vertical lines where something happened. Faults, which may be many, are short. */
  mark(u) {
    const { ctx } = u, { top, left, width, height } = u.bbox, ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    const inside = this.data.events.map(([step, what]) => [u.valToPos(step, "x", true), what]).filter(([x]) => x >= left && x <= left + width);
    const many = inside.filter(([, what]) => what === "fault").length > 20;
    for (const [x, what] of inside) {
      const [sign, color] = MARKS[what] ?? ["•", "#8b8f98"];
      ctx.strokeStyle = ctx.fillStyle = color;
      ctx.lineWidth = ratio;
      ctx.setLineDash(what === "checkpoint" ? [2 * ratio, 3 * ratio] : []);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + (what === "fault" ? 8 * ratio : height));
      ctx.stroke();
      if (sign && !(what === "fault" && many)) ctx.fillText(sign, x, top + (what === "fault" ? 16 : 9) * ratio);
    }
    ctx.restore();
  },

  enlarge(id) {
    this.large.has(id) ? this.large.delete(id) : this.large.add(id);
    const { u, card } = this.plots.find((made) => made.chart.id === id);
    card.classList.toggle("large", this.large.has(id));
    one("header button", card).setAttribute("aria-pressed", this.large.has(id));
    u.setSize(this.size({ card }, one(".plot", card)));
  },

  redraw() {
    if (this.data) this.show(this.data);
  },

  start(data) {
    one("#smoothing").value = this.smoothing = data.steps.some((steps) => steps.length > 60) ? 0.6 : 0;
    one("#smoothing").addEventListener("input", (event) => {
      this.smoothing = Number(event.target.value);
      for (const { u, chart } of this.plots) u.setData(this.columns(chart), false);
      this.zoom(...(this.range ?? []));
    });
    one("#log").addEventListener("change", (event) => { this.log = event.target.checked; this.redraw(); });
    one("#marks").addEventListener("change", (event) => { this.marks = event.target.checked; this.redraw(); });
    one("#reset").addEventListener("click", () => this.zoom());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.data = data;
  },
};
