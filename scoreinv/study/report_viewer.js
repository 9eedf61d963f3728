
// The image viewer

const WINDOWS = { "lung": [-1350, 150], "soft tissue": [-160, 240], "bone": [-500, 1300], "full": [-1000, 1000] };
const MAPS = {
  error: [[5, 48, 97], [43, 115, 179], [107, 172, 209], [190, 218, 234], [247, 246, 246], [250, 203, 178], [226, 131, 104], [183, 42, 54], [103, 0, 31]],
  uncertainty: [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]],
  gray: [[0, 0, 0], [255, 255, 255]],
};
const view = { window: "soft tissue", scale: "", at: null, row: null, arrays: {}, turn: 0 };
const cache = new Map();

function mapped(map, share) {
  const stops = MAPS[map], place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), k = Math.min(Math.floor(place), stops.length - 2);
  return stops[k].map((c, i) => c + (place - k) * (stops[k + 1][i] - c));
}

async function decoded(index) {
  if (!cache.has(index)) cache.set(index, decode(data.images.pool[index]));
  return cache.get(index);
}

async function decode({ shape: [height, width], step, text }) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer()), n = width * height, values = new Float32Array(n);
  for (let r = 0; r < height; r++) for (let c = 0, sum = 0; c < width; c++) {
    const k = r * width + c;
    sum = (sum + planes[k] + 256 * planes[n + k]) & 65535;
    values[k] = step * (sum > 32767 ? sum - 65536 : sum);
  }
  return { width, height, values };
}

function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].find((m) => m * power >= value * 0.999999) * power;
}

async function show() {
  const turn = ++view.turn, row = view.row;
  const [truth, mean, std] = await Promise.all(["truth_hu", "mean_hu", "std_hu"].map((k) => (row[k] === undefined ? null : decoded(row[k]))));
  if (turn !== view.turn) return; // another image was chosen meanwhile
  const error = truth && { ...mean, values: mean.values.map((v, k) => v - truth.values[k]) };
  view.arrays = { truth, mean, error, std };
  const size = error ? Float32Array.from(error.values, Math.abs).sort() : null;
  view.automatic = size ? roundUp(size[Math.floor(0.99 * (size.length - 1))]) : 100;
  view.at ??= [mean.width >> 1, mean.height >> 1];
  view.at = [Math.min(view.at[0], mean.width - 1), Math.min(view.at[1], mean.height - 1)];
  drawPanels();
}

function drawPanels() {
  const [low, high] = WINDOWS[view.window], limit = Number(view.scale) || view.automatic, { truth, mean, error, std } = view.arrays;
  const panels = [["Truth", truth, "gray", low, high], ["Reconstruction", mean, "gray", low, high], ["Error", error, "error", -limit, limit], ["Uncertainty, 1 standard deviation", std, "uncertainty", 0, limit]].filter((p) => p[1]);
  const focused = document.activeElement?.dataset?.panel;
  $("panels").replaceChildren(...panels.map(([name, image, map, a, b]) => {
    const canvas = make("canvas", { width: image.width, height: image.height, tabindex: "0", "data-panel": name, role: "img", "aria-label": `${name}, ${view.row.label}, ${view.row.image}` });
    paint(canvas, image, map, a, b);
    canvas.addEventListener("click", (e) => {
      const box = canvas.getBoundingClientRect();
      move(Math.floor((e.clientX - box.left) / box.width * image.width), Math.floor((e.clientY - box.top) / box.height * image.height));
    });
    canvas.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (!step) return;
      e.preventDefault();
      move(view.at[0] + step[0], view.at[1] + step[1]);
    });
    const bar = make("div", { class: "bar" });
    bar.style.background = `linear-gradient(90deg, ${MAPS[map].map((c) => `rgb(${c})`).join(",")})`;
    return make("figure", {}, make("figcaption", {}, name), canvas, bar, make("div", { class: "ends" }, ...[a, (a + b) / 2, `${b} HU`].map((v) => make("span", {}, String(v).replace("-", "\u2212")))));
  }));
  if (focused) document.querySelector(`[data-panel="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  drawProfiles();
}

function paint(canvas, image, map, low, high) {
  const context = canvas.getContext("2d"), pixels = context.createImageData(image.width, image.height);
  const table = Array.from({ length: 256 }, (_, k) => mapped(map, k / 255));
  image.values.forEach((v, k) => pixels.data.set([...table[Math.round(255 * Math.min(Math.max((v - low) / (high - low), 0), 1))], 255], 4 * k));
  const [x, y] = view.at, tint = (k) => { for (let c = 0; c < 3; c++) pixels.data[4 * k + c] = 0.45 * pixels.data[4 * k + c] + 0.55 * [255, 205, 60][c]; };
  for (let c = 0; c < image.width; c++) if (Math.abs(c - x) > 2) tint(y * image.width + c);
  for (let r = 0; r < image.height; r++) if (Math.abs(r - y) > 2) tint(r * image.width + x);
  context.putImageData(pixels, 0, 0);
}

function move(x, y) {
  const { width, height } = view.arrays.mean;
  view.at = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  drawPanels();
}

function drawProfiles() {
  const { truth, mean, error, std } = view.arrays, [x, y] = view.at, { width, height } = mean, k = y * width + x;
  const hu = (v) => `${v.toFixed(0).replace("-", "\u2212")} HU`;
  $("readout").textContent = [`column ${x}, row ${y}: reconstruction ${hu(mean.values[k])}`, truth && `truth ${hu(truth.values[k])}`, error && `error ${hu(error.values[k])}`, std && `standard deviation ${std.values[k].toFixed(1)} HU`].filter(Boolean).join(", ");
  const profile = (title, n, index, mark) => {
    const series = [];
    const line = (image) => Array.from({ length: n }, (_, i) => ({ x: i, y: image.values[index(i)] }));
    if (truth) series.push({ label: "truth", colour: "var(--faint)", line: true, marks: false, width: 2.4, points: line(truth) });
    const points = line(mean);
    if (std) points.forEach((p, i) => { const half = 1.96 * std.values[index(i)]; p.low = p.y - half; p.high = p.y + half; });
    series.push({ label: "reconstruction", colour: "var(--c0)", line: true, band: Boolean(std), marks: false, width: 1.5, points });
    const inside = series.flatMap((s) => s.points.map((p) => p.y));
    return chart({ title, note: `gray: truth; blue: reconstruction${std ? ", with \u00b1 1.96 standard deviations" : ""}`, xWords: "pixel", yWords: "HU", series, guides: [{ x: mark }], xRange: [0, Math.max(n - 1, 1)], yRange: extent(inside), height: 220 });
  };
  $("profiles").replaceChildren(profile(`Along row ${y}`, width, (i) => y * width + i, x), profile(`Along column ${x}`, height, (i) => i * width + x, y));
}

function choose() {
  const rows = data.images.rows, key = (r) => `${r.image}\n${r.seed}`;
  const own = rows.filter((r) => String(r.problem) === $("v-problem").value);
  const seeds = new Set(own.map((r) => r.seed)).size > 1;
  options($("v-image"), [...new Map(own.map((r) => [key(r), seeds ? `${r.image}, seed ${r.seed}` : r.image]))], $("v-image").value);
  const methods = own.filter((r) => key(r) === $("v-image").value);
  options($("v-method"), methods.map((r) => [r.label, r.psnr === null ? r.label : `${r.label}, ${r.psnr.toFixed(2)} dB`]), $("v-method").value || (methods.find((r) => r.std_hu !== undefined) ?? methods[0]).label);
  view.row = methods.find((r) => r.label === $("v-method").value);
  show().catch((e) => { $("readout").textContent = `The image cannot be shown: ${e.message}`; });
}

function startViewer() {
  const { rows, available } = data.images;
  if (!rows.length) {
    $("viewer").hidden = true;
    $("v-note").textContent = available ? "The images of this sweep do not fit into a page, or their files are missing." : "This sweep has kept no images; images = true in its file keeps them.";
    return;
  }
  $("v-note").textContent = rows.length < available ? `${rows.length} of ${available} reconstructions are in this page, which is limited in size; all are in the folder of the sweep.` : `All ${available} reconstructions are in this page, rounded to 1 HU.`;
  options($("v-problem"), [...new Set(rows.map((r) => r.problem))].map((k) => [k, data.problems[k].short]));
  options($("v-scale"), [["", "automatic"], ...[20, 50, 100, 200, 500, 1000].map((v) => [v, `${v} HU`])], "");
  for (const name of Object.keys(WINDOWS)) {
    const input = make("input", { type: "radio", name: "window", value: name });
    input.checked = name === view.window;
    input.addEventListener("change", () => { view.window = name; drawPanels(); });
    $("v-window").append(make("label", {}, input, ` ${name}`));
  }
  for (const id of ["v-problem", "v-image", "v-method"]) $(id).addEventListener("change", choose);
  $("v-scale").addEventListener("change", (e) => { view.scale = e.target.value; drawPanels(); });
  choose();
}
startViewer();
