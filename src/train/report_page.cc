// The page of a report: no outside file, no framework; curves are drawn as SVG in the reader's
// browser.
// SPDX-License-Identifier: Apache-2.0
#include "train/report_page.h"

namespace hadal::train {
namespace {

constexpr const char* kPage = R"page(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hadal training report</title>
<style>
:root {
  --bg: #f6f7f9; --card: #ffffff; --ink: #16191d; --soft: #646c76; --line: #e3e6ea; --grid: #eef0f3;
  --a: #2563eb; --b: #e2662b; --c: #12946a; --d: #8b5cf6; --heat: 37, 99, 235; --low: 37, 99, 235;
  --high: 226, 102, 43; --shadow: 0 1px 2px rgba(20, 30, 50, .05), 0 6px 20px rgba(20, 30, 50, .05);
  color-scheme: light;
}
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {
  --bg: #0d1014; --card: #151a20; --ink: #e8ebef; --soft: #8f99a6; --line: #252c35; --grid: #1e242c;
  --a: #6ea0ff; --b: #ff9563; --c: #3ecf9a; --d: #b39bff; --heat: 110, 160, 255; --low: 110, 160, 255;
  --high: 255, 149, 99; --shadow: none; color-scheme: dark;
} }
:root[data-theme=dark] {
  --bg: #0d1014; --card: #151a20; --ink: #e8ebef; --soft: #8f99a6; --line: #252c35; --grid: #1e242c;
  --a: #6ea0ff; --b: #ff9563; --c: #3ecf9a; --d: #b39bff; --heat: 110, 160, 255; --low: 110, 160, 255;
  --high: 255, 149, 99; --shadow: none; color-scheme: dark;
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
header { display: flex; align-items: flex-start; gap: 16px; margin-bottom: 22px; }
header div { flex: 1; min-width: 0; }
h1 { margin: 0; font-size: 25px; letter-spacing: -.02em; overflow-wrap: anywhere; }
header p { margin: 4px 0 0; color: var(--soft); }
button { border: 1px solid var(--line); background: var(--card); color: var(--soft); border-radius: 9px;
  padding: 7px 12px; font: inherit; font-size: 13px; cursor: pointer; }
button:hover { color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin-bottom: 16px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; box-shadow: var(--shadow); }
.tile { padding: 13px 16px; }
.tile b { display: block; font-size: 23px; font-weight: 620; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12.5px; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.card { padding: 16px 18px 12px; min-width: 0; }
.wide { grid-column: 1 / -1; }
h2 { margin: 0; font-size: 14.5px; font-weight: 620; }
.card > p { margin: 2px 0 8px; color: var(--soft); font-size: 12.5px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 12.5px; color: var(--soft); margin: 5px 0 4px; min-height: 19px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: 3px; }
.legend i.dot { width: 8px; height: 8px; border-radius: 50%; vertical-align: 0; }
.legend em { font-style: normal; color: var(--ink); font-variant-numeric: tabular-nums; margin-left: 5px; }
svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.heat { display: grid; gap: 3px; }
.heat > div { display: grid; grid-template-columns: 62px 1fr; align-items: center; gap: 8px; }
.heat label { font-size: 12px; color: var(--soft); text-align: right; white-space: nowrap; }
.cells { display: flex; height: 22px; border-radius: 5px; overflow: hidden; background: var(--grid); }
.cells span { flex: 1; min-width: 0; }
.scale { display: flex; align-items: center; gap: 8px; margin: 10px 0 4px 70px; font-size: 12px; color: var(--soft); }
.scale i { flex: 0 1 180px; height: 8px; border-radius: 4px; }
#tip { position: fixed; pointer-events: none; z-index: 9; background: var(--ink); color: var(--bg); font-size: 12px;
  padding: 5px 9px; border-radius: 7px; opacity: 0; transition: opacity .1s; white-space: nowrap; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-size: 13px; } td { padding: 3px 18px 3px 0; }
details pre { overflow: auto; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; max-height: 460px; }
summary { cursor: pointer; font-size: 14.5px; font-weight: 620; }
footer { color: var(--soft); font-size: 12.5px; margin-top: 22px; }
@media (max-width: 760px) {
  main { padding: 18px 12px 40px; } .grid { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 9px; } h1 { font-size: 21px; }
  .card { padding: 14px 13px 10px; } .heat > div { grid-template-columns: 44px 1fr; gap: 6px; } .scale { margin-left: 50px; }
}
@media print { button { display: none; } .card, .tile { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header><div><h1></h1><p id="about"></p></div><button id="theme">light / dark</button></header>
<section class="tiles"></section>
<section class="grid"></section>
<footer>Written by hadal from metrics.jsonl and run.json. Curves show means where a run has more steps than points; the bold line is a moving mean.</footer>
</main>
<div id="tip"></div>
<script>
"use strict";
const data = /*DATA*/;
const $ = (name, attributes = {}, ...children) => {
  const svg = ["svg", "path", "g", "line", "text", "circle", "rect"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const grid = document.querySelector(".grid"), tip = document.getElementById("tip");
const show = (x) => {
  if (x === undefined || x === null || !isFinite(x)) return "-";
  const a = Math.abs(x);
  if (a === 0) return "0";
  if (a >= 1e9) return (x / 1e9).toFixed(2) + " B";
  if (a >= 1e6) return (x / 1e6).toFixed(2) + " M";
  if (a >= 1e4) return (x / 1e3).toFixed(1) + " K";
  if (a >= 100) return x.toFixed(0);
  if (a >= 1) return x.toFixed(a >= 10 ? 2 : 3).replace(/\.?0+$/, "");
  return a >= 1e-3 ? String(+x.toPrecision(3)) : x.toExponential(1).replace(".0e", "e").replace("e-", "e\u2212");
};
const clock = (s) => s >= 3600 ? `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`
  : s >= 60 ? `${(s / 60).toFixed(1)} min` : `${s.toFixed(1)} s`;
const last = (points) => points && points.length ? points[points.length - 1] : [0, NaN];
// About five round numbers from low to high.
const ticks = (low, high) => {
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const list = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) list.push(x);
  return list;
};
// Powers of ten, with 2 and 5 where there are few.
const logTicks = (low, high) => {
  const list = [];
  for (let p = Math.floor(low); p <= high; ++p)
    for (const m of high - low < 2 ? [1, 2, 5] : [1]) list.push(p + Math.log10(m));
  return list.filter((x) => x >= low && x <= high);
};
const smooth = (points) => {
  const half = Math.max(1, Math.round(points.length / 80));
  return points.map(([x], i) => {
    const reach = Math.min(half, i, points.length - 1 - i), part = points.slice(i - reach, i + reach + 1);
    return [x, part.reduce((sum, p) => sum + p[1], 0) / part.length];
  });
};
const card = (title, about, wide) => {
  const node = $("section", { class: wide ? "card wide" : "card" }, $("h2", {}, title));
  if (about) node.append($("p", {}, about));
  grid.append(node);
  return node;
};
// series: {name, points: [[step, value]], color, dots}; a log scale if asked for.
const chart = (title, series, { wide = false, log = false, about = "", zero = false } = {}) => {
  series = series.filter((s) => s.points && s.points.length);
  if (!series.length) return;
  const phone = window.innerWidth <= 760;
  const node = card(title, about, wide), W = phone ? 360 : wide ? 1100 : 540, H = phone ? 190 : wide ? 300 : 230;
  const left = phone ? 42 : 52, right = 8, top = 8, bottom = 24;
  const value = (y) => log ? Math.log10(Math.max(y, 1e-12)) : y;
  const xs = series.flatMap((s) => s.points.map((p) => p[0]));
  const ys = series.flatMap((s) => s.points.map((p) => value(p[1]))).filter(isFinite);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (zero) y0 = Math.min(0, y0);
  // Spikes of the first steps must not flatten the rest.
  const sorted = [...ys].sort((a, b) => a - b), most = sorted[Math.floor(sorted.length * .995)];
  if (!log && !zero && y1 > most + .6 * (most - y0)) y1 = most + .25 * (most - y0);
  const pad = (y1 - y0) * .05 || Math.abs(y1) * .1 || 1;
  if (!(zero && y0 === 0)) y0 -= pad;
  y1 += pad;
  const X = (x) => left + (x - x0) / (x1 - x0) * (W - left - right);
  const Y = (y) => top + (y1 - Math.min(value(y), y1)) / (y1 - y0) * (H - top - bottom);
  const svg = $("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const t of log ? logTicks(y0, y1) : ticks(y0, y1)) {
    const y = top + (y1 - t) / (y1 - y0) * (H - top - bottom);
    svg.append($("line", { x1: left, x2: W - right, y1: y, y2: y, style: "stroke: var(--grid)" }));
    const label = $("text", { x: left - 8, y: y + 4, "text-anchor": "end" });
    label.textContent = show(log ? 10 ** t : Math.abs(t) < 1e-12 ? 0 : t);
    svg.append(label);
  }
  for (const t of ticks(x0, x1)) {
    const label = $("text", { x: X(t), y: H - 5, "text-anchor": "middle" });
    label.textContent = show(t);
    svg.append(label);
  }
  for (const s of series) {
    const draw = (points, style) => svg.append($("path", { fill: "none", "stroke-linejoin": "round",
      d: points.map((p, i) => (i ? "L" : "M") + X(p[0]).toFixed(1) + " " + Y(p[1]).toFixed(1)).join(""),
      style: `stroke: var(--${s.color}); ${style}` }));
    const noisy = s.noisy && s.points.length > 40;
    draw(s.points, s.dots ? "stroke-width: 1.2; stroke-dasharray: 3 4" : noisy ? "stroke-width: 1; opacity: .28" : "stroke-width: 1.8");
    if (noisy) draw(smooth(s.points), "stroke-width: 2");
    if (s.dots) for (const p of s.points)
      svg.append($("circle", { cx: X(p[0]), cy: Y(p[1]), r: 3.4, style: `fill: var(--${s.color}); stroke: var(--card); stroke-width: 1.5` }));
  }
  for (const e of data.events || []) if (e.step >= x0 && e.step <= x1)
    svg.append($("line", { x1: X(e.step), x2: X(e.step), y1: top, y2: H - bottom, style: "stroke: var(--b); stroke-dasharray: 2 3" }));
  const cross = $("line", { y1: top, y2: H - bottom, style: "stroke: var(--soft); stroke-width: .8; opacity: 0" });
  const legend = $("div", { class: "legend" }), values = [];
  for (const s of series) {
    const em = $("em", {}, show(last(s.points)[1]));
    values.push(em);
    legend.append($("span", {}, $("i", { style: `background: var(--${s.color})`, class: s.dots ? "dot" : "" }), s.name, em));
  }
  const where = $("span", {});
  legend.append(where);
  svg.append(cross);
  const near = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * W - left) / (W - left - right) * (x1 - x0);
    const p = near(series[0].points, x);
    cross.setAttribute("x1", X(p[0]));
    cross.setAttribute("x2", X(p[0]));
    cross.style.opacity = 1;
    where.textContent = "step " + p[0];
    series.forEach((s, i) => { values[i].textContent = show(near(s.points, p[0])[1]); });
  });
  svg.addEventListener("pointerleave", () => {
    cross.style.opacity = 0;
    where.textContent = "";
    series.forEach((s, i) => { values[i].textContent = show(last(s.points)[1]); });
  });
  node.append(legend, svg);
};
// rows: [[value]]; color(value) is CSS; text(row, column) is what a cell tells.
const heat = (title, about, rows, names, color, text, scale) => {
  if (!rows.length || !rows[0].length) return;
  const node = card(title, about, true), body = $("div", { class: "heat" });
  rows.forEach((row, r) => {
    const cells = $("div", { class: "cells" });
    row.forEach((value, c) => {
      const cell = $("span", { style: `background: ${color(value)}` });
      cell.addEventListener("pointermove", (event) => {
        tip.textContent = text(r, c);
        tip.style.left = Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8) + "px";
        tip.style.top = event.clientY - 34 + "px";
        tip.style.opacity = 1;
      });
      cell.addEventListener("pointerleave", () => { tip.style.opacity = 0; });
      cells.append(cell);
    });
    body.append($("div", {}, $("label", {}, names[r]), cells));
  });
  node.append(body, $("div", { class: "scale" }, scale[0], $("i", { style: `background: linear-gradient(90deg, ${scale[1]})` }), scale[2]));
};

const run = data.run, model = run.model, train = run.train;
document.querySelector("h1").textContent = data.output.split("/").filter(Boolean).pop() || "run";
document.title = "hadal: " + document.querySelector("h1").textContent;
document.getElementById("about").textContent =
  `${model.num_hidden_layers} layers, width ${model.hidden_size}, ${model.n_routed_experts} experts with ` +
  `${model.num_experts_per_tok} chosen, MTP depth ${model.num_nextn_predict_layers}; ` +
  `sequences of ${train.sequence_length}, ${train.dtype} on ${train.device}`;
const tile = (name, value) => document.querySelector(".tiles").append($("div", { class: "tile" }, $("b", {}, value), $("span", {}, name)));
tile("steps", show(last(data.loss)[0]));
tile("tokens", show(data.tokens));
tile("training time", clock(data.seconds));
tile("training loss", show(last(data.loss)[1]));
if (data.held_out.length) {
  tile("held-out loss", show(last(data.held_out)[1]));
  tile("held-out bits per byte", show(last(data.held_out_bits)[1]));
}
tile("MaxVio", show(last(data.maxvio)[1]));
tile("tokens per second", show(data.tokens / data.seconds));
if (data.skipped) tile("steps skipped by the guard", show(data.skipped));

const colors = ["c", "d"];
chart("Loss", [
  { name: "train", points: data.loss, color: "a", noisy: true },
  { name: "held out", points: data.held_out, color: "b", dots: true },
  ...data.mtp.map((points, k) => ({ name: `MTP ${k + 1}`, points, color: colors[k % 2], noisy: true })),
  ...data.held_out_mtp.map((points, k) => ({ name: `MTP ${k + 1} held out`, points, color: colors[k % 2], dots: true })),
], { wide: true, about: "Mean cross-entropy of a target, in nats" });
chart("Bits per byte", [
  { name: "train", points: data.bits, color: "a", noisy: true },
  { name: "held out", points: data.held_out_bits, color: "b", dots: true }]);
chart("Learning rate", [{ name: "lr", points: data.lr, color: "a" }], { zero: true });
chart("Gradient norm", [{ name: "before clipping", points: data.norm, color: "a", noisy: true }], { log: true });
chart("Sequences of a step", [{ name: "batch", points: data.sequences, color: "a" }], { zero: true });
chart("Speed", [{ name: "tokens per second", points: data.speed, color: "a", noisy: true }], { zero: true });
chart("MaxVio", [{ name: "mean over layers, of a step", points: data.maxvio, color: "a", noisy: true }], { zero: true });

const experts = data.experts, depths = model.num_nextn_predict_layers, dense = model.first_k_dense_replace;
const names = experts.maxvio.map((_, m) => m < experts.maxvio.length - depths ? `layer ${m + dense}`
  : `MTP ${m - (experts.maxvio.length - depths) + 1}`);
const worst = Math.max(.5, ...experts.maxvio.flat());
heat("MaxVio of each layer", "Largest load of an expert over the mean load, less 1, over the run", experts.maxvio, names,
  (v) => `rgba(var(--heat), ${Math.sqrt(Math.max(0, v) / worst).toFixed(3)})`,
  (r, c) => `${names[r]}, step ${experts.steps[c]}: ${show(experts.maxvio[r][c])}`,
  ["0", "rgba(var(--heat), 0), rgba(var(--heat), .71), rgba(var(--heat), 1)", show(worst)]);
heat("Load of each expert", "Over the mean of its layer, in the last tenth of the run; one cell an expert", experts.load, names,
  (v) => v < 1 ? `rgba(var(--low), ${Math.min(1, 1 - v).toFixed(3)})` : `rgba(var(--high), ${Math.min(1, v - 1).toFixed(3)})`,
  (r, c) => `${names[r]}, expert ${c}: ${show(experts.load[r][c])} of the mean`,
  ["0", "rgb(var(--low)), rgba(var(--low), 0) 50%, rgba(var(--high), 0) 50%, rgb(var(--high))", "2 or more"]);
if (data.events.length) {
  const table = $("table");
  for (const e of data.events)
    table.append($("tr", {}, $("td", {}, "roll-back"), $("td", {}, `step ${e.from} back to step ${e.step - 1}`)));
  card("Events", "", true).append(table);
}
const details = $("details", {}, $("summary", {}, "Configuration"), $("pre", {}, JSON.stringify(run, null, 2)));
grid.append($("section", { class: "card wide" }, details));
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
</script>
</body>
</html>
)page";

}  // namespace

const char* report_page() { return kPage; }

}  // namespace hadal::train
