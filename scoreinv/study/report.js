
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const figures = Object.fromEntries(data.figures.map((f) => [f.key, f]));
const labels = [...new Set(data.problems.flatMap((p) => p.methods.map((m) => m.label)))];
const colour = (label) => `var(--c${labels.indexOf(label) % 10})`;
const state = { problem: "", figure: "psnr", sort: "problem", down: false };

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "rect", "text", "g", "polyline"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children); // strings become text, never HTML
  return node;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, words]) => make("option", { value }, words)));
  if (pairs.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

const number = (value, figure) => (value * (figure.percent ? 100 : 1)).toFixed(figure.digits).replace("-", "\u2212");
const signed = (value, figure) => (value > 0 ? "+" : "") + number(value, figure);
const probability = (p) => (p < 0.0001 ? "< 0.0001" : p.toPrecision(2));

function intervalCell(value, figure, write = number) {
  if (!value) return make("td", {}, "\u2013");
  const cell = make("td", {}, write(value.mean, figure));
  if (value.low !== null) cell.append(make("small", {}, `${write(value.low, figure)} to ${write(value.high, figure)}`));
  return cell;
}

// The table

function columns() {
  const compared = figures[state.figure];
  const has = (key) => data.problems.some((p) => p.methods.some((m) => m.values[key]));
  const test = (m) => m.tests[state.figure];
  const shown = data.figures.filter((f) => has(f.key));
  const value = (f) => ({ id: f.key, words: f.words, sort: (p, m) => m.values[f.key]?.mean, figure: f, cell: (p, m) => intervalCell(m.values[f.key], f) });
  const first = shown.filter((f) => ["psnr", "ssim"].includes(f.key));
  if (!first.includes(compared) && has(state.figure)) first.push(compared);
  return [
    ...(state.problem === "" && data.problems.length > 1 ? [{ id: "problem", words: "problem", text: true, sort: (p) => data.problems.indexOf(p), cell: (p) => make("td", { class: "text" }, p.short) }] : []),
    { id: "label", words: "method", text: true, sort: (p, m) => m.label, cell: (p, m) => make("th", { class: "text", scope: "row" }, m.label) },
    { id: "n", words: data.problems.every((p) => p.unit === "images") ? "images" : "patients", sort: (p, m) => m.n, cell: (p, m) => { const cell = make("td", {}, String(m.n)); if (m.failed) cell.append(make("small", { class: "bad" }, `${m.failed} failed`)); return cell; } },
    ...first.map(value),
    { id: "difference", words: `\u0394 ${compared.words}`, sort: (p, m) => test(m)?.difference.mean, cell: (p, m) => p.baseline === m.label ? make("td", {}, "baseline") : intervalCell(test(m)?.difference, compared, signed) },
    { id: "p", words: "p (n)", sort: (p, m) => test(m)?.p, cell: (p, m) => test(m) ? make("td", {}, test(m).p === null ? "\u2013" : probability(test(m).p), make("small", {}, `n = ${test(m).n}`)) : make("td", {}, "\u2013") },
    ...shown.filter((f) => !first.includes(f)).map(value),
  ];
}

function drawTable() {
  const shown = columns();
  const column = shown.find((c) => c.id === state.sort) ?? shown[0];
  const heads = shown.map((c) => {
    const button = make("button", { type: "button", "data-column": c.id }, c.words);
    button.addEventListener("click", () => {
      state.down = state.sort === c.id ? !state.down : c.figure?.better === 1;
      state.sort = c.id;
      drawTable();
      document.querySelector(`[data-column="${c.id}"]`).focus();
    });
    return make("th", { scope: "col", class: c.text ? "text" : null, "aria-sort": c === column ? (state.down ? "descending" : "ascending") : null }, button);
  });
  $("table").tHead.replaceChildren(make("tr", {}, ...heads));
  const rows = visible().flatMap((p) => p.methods.map((m) => [p, m]));
  rows.sort((a, b) => {
    const [x, y] = [column.sort(...a), column.sort(...b)];
    if (x == null || y == null) return (x == null) - (y == null); // what is missing comes last
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return state.down ? -order : order;
  });
  $("table").tBodies[0].replaceChildren(...rows.map(([p, m]) => make("tr", {}, ...shown.map((c) => {
    const cell = c.cell(p, m);
    if (c.figure?.better && m.values[c.id]) {
      const all = p.methods.map((o) => o.values[c.id]?.mean).filter((v) => v !== undefined).map((v) => v * c.figure.better);
      if (all.length > 1 && m.values[c.id].mean * c.figure.better === Math.max(...all)) cell.classList.add("best");
    }
    return cell;
  }))));
}

const visible = () => data.problems.filter((_, k) => state.problem === "" || String(k) === state.problem);

// Plots

const SHAPES = ["M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", "M-4 -4H4V4H-4Z", "M0 -5.2L5 4H-5Z", "M0 -5.6L5.6 0L0 5.6L-5.6 0Z"];
const shape = (label) => SHAPES[Math.floor(labels.indexOf(label) / 10 + labels.indexOf(label)) % SHAPES.length];

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) found.push(m * 10 ** e);
    const inside = found.filter((v) => v >= low / 1.0001 && v <= high * 1.0001);
    const decades = inside.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-6);
    if (inside.length > 1) return inside.length > 7 ? decades : inside;
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power, found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

const tickText = (v) => (Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(0) : String(Number(v.toPrecision(6)))).replace("-", "\u2212");

function extent(values, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) { const pad = Math.max(1.12, (high / low) ** 0.06); return [low / pad, high * pad]; }
  const pad = 0.06 * (high - low) || Math.abs(high) * 0.05 || 1;
  return [low - pad, high + pad];
}

/* One chart. series: {label, colour, points: [{x, y, low, high, words}], line, marks, width}; guides: [{x} or {y} or {path: [[x, y], ...]}]. */
function chart({ title, note, xWords, yWords, series, guides = [], xLog = false, yLog = false, xRange, yRange, xTicks, height = 250 }) {
  const width = 400, left = 52, right = 14, top = 10, bottom = 40;
  const points = series.flatMap((s) => s.points);
  const [x0, x1] = xRange ?? extent(points.map((p) => p.x), xLog);
  const [y0, y1] = yRange ?? extent(points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).filter((v) => !yLog || v > 0), yLog);
  const scale = (v, a, b, log) => log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
  const X = (v) => left + (width - left - right) * scale(v, x0, x1, xLog);
  const Y = (v) => height - bottom - (height - top - bottom) * scale(yLog ? Math.max(v, y0) : v, y0, y1, yLog);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${yWords} against ${xWords}` });
  for (const v of ticks(y0, y1, yLog)) svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }), make("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, tickText(v)));
  for (const v of xTicks ?? ticks(x0, x1, xLog)) svg.append(make("line", { class: "grid", x1: X(v), x2: X(v), y1: height - bottom, y2: height - bottom + 4 }), make("text", { x: X(v), y: height - bottom + 16, "text-anchor": "middle" }, tickText(v)));
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, xWords), make("text", { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yWords));
  for (const g of guides) {
    const path = g.path ?? (g.y !== undefined ? [[x0, g.y], [x1, g.y]] : [[g.x, y0], [g.x, y1]]);
    svg.append(make("polyline", { class: "guide", points: path.map(([x, y]) => `${X(x)},${Y(y)}`).join(" ") }));
  }
  for (const s of series) {
    if (s.band) svg.append(make("path", { d: "M" + [...s.points.map((p) => `${X(p.x)} ${Y(Math.min(Math.max(p.high, y0), y1))}`), ...s.points.slice().reverse().map((p) => `${X(p.x)} ${Y(Math.min(Math.max(p.low, y0), y1))}`)].join("L") + "Z", fill: s.colour, opacity: 0.22 }));
    if (s.line) svg.append(make("polyline", { points: s.points.map((p) => `${X(p.x)},${Y(p.y)}`).join(" "), fill: "none", stroke: s.colour, "stroke-width": s.width ?? 1.8, "stroke-linejoin": "round" }));
    if (s.marks === false) continue;
    for (const p of s.points) {
      const mark = make("g", { class: "mark", transform: `translate(${X(p.x)} ${Y(p.y)})` });
      if (p.low != null) mark.append(make("line", { y1: Y(p.low) - Y(p.y), y2: Y(p.high) - Y(p.y), stroke: s.colour, "stroke-width": 1.3, opacity: 0.65 }));
      mark.append(make("path", { d: shape(s.label), fill: s.colour }), make("circle", { r: 11, fill: "transparent" }));
      hover(mark, p.words);
      svg.append(mark);
    }
  }
  return make("figure", {}, make("figcaption", {}, title, make("small", {}, note ?? "")), svg);
}

function hover(node, words) {
  const tip = $("tip");
  node.addEventListener("pointermove", (event) => {
    tip.textContent = words;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
}

const words = (value, f) => `${f.words}: ${number(value.mean, f)}${value.low === null ? "" : ` (${number(value.low, f)} to ${number(value.high, f)})`}`;
const point = (m, x, f, more = "") => {
  const v = m.values[f.key], k = f.percent ? 100 : 1;
  return { x, y: k * v.mean, low: v.low === null ? null : k * v.low, high: v.high === null ? null : k * v.high, words: `${m.label}\n${words(v, f)}${more}` };
};

function pareto(problem, f) {
  const methods = problem.methods.filter((m) => m.values[f.key] && m.values.seconds?.mean > 0);
  if (!methods.length) return [];
  const series = methods.map((m) => ({ label: m.label, colour: colour(m.label), points: [point(m, m.values.seconds.mean, f, `\n${words(m.values.seconds, figures.seconds)}`)] }));
  const front = [];
  for (const p of series.map((s) => s.points[0]).sort((a, b) => a.x - b.x)) {
    if (!front.length) front.push([p.x, p.y]);
    else if ((p.y - front.at(-1)[1]) * f.better > 0) front.push([p.x, front.at(-1)[1]], [p.x, p.y]);
  }
  return [chart({ title: `${f.words} and seconds`, note: problem.short, xWords: "seconds an image", yWords: f.words, series, guides: [{ path: front }], xLog: true })];
}

function along(axis, f) {
  const series = labels.map((label) => ({ label, colour: colour(label), line: true, points: axis.points.flatMap(([x, k]) => data.problems[k].methods.filter((m) => m.label === label && m.values[f.key]).map((m) => point(m, x, f, `\n${tickText(x)} ${axis.axis}`))) })).filter((s) => s.points.length);
  return series.length ? [chart({ title: `${f.words} and ${axis.axis}`, note: axis.title, xWords: axis.axis, yWords: f.words, series, xLog: axis.log, xTicks: axis.log ? [...new Set(axis.points.map(([x]) => x))] : undefined })] : [];
}

function calibrations(problem) {
  const found = [], sampling = problem.methods.filter((m) => m.values.calibration);
  const curves = problem.methods.filter((m) => m.coverage);
  if (curves.length) {
    const series = curves.map((m) => ({ label: m.label, colour: colour(m.label), line: true, points: m.coverage.map(([x, y]) => ({ x: 100 * x, y: 100 * y, words: `${m.label}\nclaimed ${(100 * x).toFixed(0)} %, measured ${(100 * y).toFixed(0)} %` })) }));
    found.push(chart({ title: "Coverage, claimed and measured", note: `${problem.short}; tissue of the stored images`, xWords: "claimed [%]", yWords: "measured [%]", series, guides: [{ path: [[0, 0], [100, 100]] }], xRange: [0, 100], yRange: [0, 100] }));
  } else if (sampling.some((m) => m.values.coverage_90)) {
    const series = sampling.filter((m) => m.values.coverage_90).map((m) => ({ label: m.label, colour: colour(m.label), points: [point(m, 90, figures.coverage_90)] }));
    found.push(chart({ title: "Coverage, claimed and measured", note: problem.short, xWords: "claimed [%]", yWords: "measured [%]", series, guides: [{ path: [[0, 0], [100, 100]] }], xRange: [0, 100], yRange: [0, 100] }));
  }
  if (sampling.length) {
    const series = sampling.map((m, k) => ({ label: m.label, colour: colour(m.label), points: [point(m, k + 1, figures.calibration)] }));
    const all = series.flatMap((s) => s.points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y])).concat(1);
    found.push(chart({ title: "Calibration ratio", note: `${problem.short}; predicted over actual error, 1 is right`, xWords: "method", yWords: "ratio", series, guides: [{ y: 1 }], xRange: [0.5, sampling.length + 0.5], xTicks: [], yRange: [Math.min(0, ...all), 1.08 * Math.max(...all)] }));
  }
  return found;
}

function drawCharts() {
  const f = figures[state.figure];
  $("charts").replaceChildren(
    ...data.axes.filter((a) => state.problem === "" || a.points.some(([, k]) => String(k) === state.problem)).flatMap((a) => along(a, f)),
    ...visible().flatMap((p) => [...pareto(p, f), ...calibrations(p)]),
  );
}

// What does not change

function plainTable(rows, keys) {
  const body = rows.map((row) => make("tr", {}, ...keys.map((k) => make("td", { class: "text" }, row[k] === undefined || row[k] === null ? "" : typeof row[k] === "object" ? JSON.stringify(row[k]) : String(row[k])))));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, make("tr", {}, ...keys.map((k) => make("th", { class: "text", scope: "col" }, k.replace("_", " "))))), make("tbody", {}, ...body)));
}

function argumentsOf(name, rows) {
  const keys = [...new Set(rows.flatMap(Object.keys))];
  const sparse = name === "Methods"; // every method has other settings: a list each, not one wide table
  const body = sparse ? plainTable(rows.map((row) => ({ label: row.label, settings: Object.entries(row).filter(([k]) => !["label", "rows"].includes(k)).map(([k, v]) => `${k} = ${JSON.stringify(v)}`).join(", "), rows: row.rows })), ["label", "settings", "rows"]) : plainTable(rows, keys);
  return make("details", name.startsWith("Computed") || sparse ? { open: "" } : {}, make("summary", {}, `${name} (${rows.length})`), body);
}

function start() {
  const s = data.settings, failed = data.failed.length;
  $("about").textContent = `${data.rows} rows${failed ? `, ${failed} failed` : ""}${data.outdated ? `, ${data.outdated} of images that have changed since left out` : ""}${data.absent ? `, ${data.absent} cells of the sweep without a row yet` : ""}, computed ${s.first ?? "?"} to ${s.last ?? "?"}. Page made ${data.made} by scoreinv ${data.scoreinv}.`;
  options($("problem"), [["", "all"], ...data.problems.map((p, k) => [k, p.short])], "");
  options($("figure"), ["psnr", "ssim", "rmse_hu"].map((k) => [k, figures[k].words]), "psnr");
  $("problem").addEventListener("change", (e) => { state.problem = e.target.value; drawTable(); drawCharts(); });
  $("figure").addEventListener("change", (e) => { state.figure = e.target.value; drawTable(); drawCharts(); });
  const bases = [...new Set(data.problems.map((p) => p.baseline).filter(Boolean))];
  $("statistics").textContent = `Means over patients (of phantoms: over images), each patient's slices and seeds averaged first; below them 95 % confidence intervals by Student's t over patients. \u0394 is the mean difference to the baseline (${bases.join("; ") || `none: no method is called ${data.asked_baseline}`}), patient by patient, with its interval; p is of Wilcoxon's signed-rank test of these differences, two-sided, on n patients, not corrected for the number of methods; with fewer than 6 patients it cannot be below 0.05. Of several settings of the baseline the one of the highest PSNR is taken. Best means are shaded.${data.problems.length > 1 && data.common ? ` All problems: ${data.common}.` : ""}`;
  $("legend").replaceChildren(...labels.map((label) => make("span", {}, make("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, make("path", { d: shape(label), fill: colour(label) })), label)));
  $("failures").replaceChildren(failed ? plainTable(data.failed.map((r) => ({ method: r.label, problem: r.problem, image: r.image, seed: r.seed, error: `${r.error_type}: ${r.error}` })), ["method", "problem", "image", "seed", "error"]) : make("p", { class: "note" }, "No cell failed."));
  $("arguments").replaceChildren(
    s.toml === null ? make("p", { class: "note" }, "The folder has no copy of a sweep file; the resolved arguments below are complete.") : make("details", { open: "" }, make("summary", {}, "Sweep: scoreinv bench sweep.toml"), make("pre", {}, s.toml)),
    make("p", {}, `Seeds: ${s.seeds.join(", ")}. Arguments that are not listed are None; angles are in radians.`), ...Object.entries(s.parts).filter(([, rows]) => rows.length).map(([name, rows]) => argumentsOf(name, rows)),
  );
  $("csv").addEventListener("click", () => {
    const link = make("a", { href: URL.createObjectURL(new Blob([data.csv], { type: "text/csv" })), download: "rows.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  drawTable();
  drawCharts();
}
start();
