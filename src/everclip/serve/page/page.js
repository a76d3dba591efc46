"use strict";
// Everything from the server is set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const drawn = (tag, props = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
let store = { versions: [] };

async function ask(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Error("The server does not answer."); }
  const text = await answer.text();
  let document = {};
  try { document = JSON.parse(text); } catch { /* said below */ }
  if (!answer.ok) throw new Error(document.error ? document.error.message : `The server answered ${answer.status}.`);
  return document;
}
const sent = (document) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document),
});
function withToken(options) {
  const token = $("token").value.trim();
  const headers = { ...(options.headers || {}) };
  if (token) headers.Authorization = `Bearer ${token}`;
  return { ...options, headers };
}

// -- tabs ---------------------------------------------------------------------------------------------------
const tabs = [...document.querySelectorAll("[role=tab]")];
function show(tab) {
  for (const other of tabs) {
    const on = other === tab;
    other.setAttribute("aria-selected", String(on));
    other.tabIndex = on ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !on;
  }
  const part = tab.getAttribute("aria-controls");
  $("compare").hidden = part !== "classify" && part !== "search";
  history.replaceState(null, "", `#/${part}`); // no element's id: the keyboard would begin there
  if (part === "service") service();
}
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
});

// -- images: chosen, dropped or pasted ----------------------------------------------------------------------
function takesImages(input, drop, changed) {
  const give = (files) => {
    const image = [...files].find((file) => file.type.startsWith("image/"));
    if (!image) return;
    const list = new DataTransfer();
    list.items.add(image);
    input.files = list.files;
    changed();
  };
  input.addEventListener("change", changed);
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    give(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (!drop.closest("section").hidden) give(event.clipboardData.files);
  });
}
takesImages($("classify-image"), $("classify-drop"), () => {
  const [file] = $("classify-image").files;
  $("classify-shown").hidden = !file;
  if (file) $("classify-shown").src = URL.createObjectURL(file);
});
takesImages($("search-image"), $("search-drop"), () => { if ($("search-image").files[0]) $("search-text").value = ""; });
$("search-text").addEventListener("input", () => { $("search-image").value = ""; });

// -- two versions side by side ------------------------------------------------------------------------------
const chosen = () => [$("left").value, $("right").value].filter(Boolean);
const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
async function beside(form, error, answers, draw) {
  $(error).textContent = "";
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const found = await Promise.all(chosen().map(draw.ask));
    $(answers).replaceChildren(...draw.cards(found));
  } catch (problem) {
    $(error).textContent = problem.message;
  } finally {
    button.disabled = false;
  }
}

$("classify-form").addEventListener("submit", (event) => {
  event.preventDefault();
  beside(event.target, "classify-error", "classify-answers", {
    ask: (version) => {
      const form = new FormData();
      form.append("images", $("classify-image").files[0]);
      for (const name of lines("classify-names")) form.append("names", name);
      if ($("classify-template").value.trim()) form.append("templates", $("classify-template").value);
      form.append("top", "10");
      form.append("version", version);
      return ask("/classify", { method: "POST", body: form });
    },
    cards: (found) => {
      const best = new Set(found.map((answer) => answer.images[0].names[0].name));
      $("classify-note").textContent = found.length < 2 ? "" : best.size > 1 ? "The versions differ." : "Both versions say the same.";
      return found.map(classified);
    },
  });
});
function classified(answer) {
  const [image] = answer.images;
  const scores = image.names.map((entry) => entry.score);
  const low = Math.min(0, ...scores), span = Math.max(...scores) - low || 1;
  const list = make("ol", { className: "scores" }, ...image.names.map((entry) => {
    const bar = make("div", { className: "bar" });
    bar.style.width = `${(100 * (entry.score - low)) / span}%`;
    return make("li", {}, bar, make("span", {}, entry.name), make("span", { className: "number" }, entry.score.toFixed(3)));
  }));
  const card = make("div", { className: "card" }, make("h3", {}, titleOf(answer.version)), list);
  if (image.route !== null) card.append(make("p", { className: "muted" }, `Route: ${image.route}`));
  const experts = Object.entries(image.experts);
  if (experts.length) {
    const rows = experts.map(([place, list]) => make("tr", {}, make("td", {}, place), make("td", {}, list.join(", "))));
    card.append(make("details", {}, make("summary", {}, "Experts"), make("table", {}, ...rows)));
  }
  return card;
}

$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("search-text").value.trim() && !$("search-image").files.length) {
    $("search-error").textContent = "Give a text or an image.";
    $("search-text").focus();
    return;
  }
  const problems = [];
  beside(event.target, "search-error", "search-answers", {
    ask: async (version) => {
      const form = new FormData();
      const [image] = $("search-image").files;
      if (image) form.append("images", image); else form.append("texts", $("search-text").value);
      for (const line of lines("search-where")) form.append("where", line);
      form.append("top", "12");
      form.append("version", version);
      try { return await ask("/search", { method: "POST", body: form }); } catch (problem) {
        // Often the index has vectors of one version only: the other one still answers.
        if (problems.push(problem) === chosen().length) throw problem;
        return { version, problem: problem.message };
      }
    },
    cards: found,
  });
});
function found(answers) {
  const ids = answers.map((answer) => new Set(answer.problem ? [] : answer.results[0].map((hit) => hit.id)));
  const compared = answers.length === 2 && !answers.some((answer) => answer.problem);
  if (compared) {
    const both = [...ids[0]].filter((id) => ids[1].has(id)).length;
    $("search-note").textContent = `${both} of ${Math.max(ids[0].size, ids[1].size)} images are found by both versions; others have a frame.`;
  } else {
    $("search-note").textContent = "";
  }
  return answers.map((answer, side) => {
    if (answer.problem) return make("div", { className: "card" }, make("h3", {}, titleOf(answer.version)), make("p", {}, answer.problem));
    const hits = answer.results[0].map((hit) => {
      const facts = Object.entries(hit.metadata).slice(0, 3).map(([name, value]) => `${name}: ${value}`).join(", ");
      const only = compared && !ids[1 - side].has(hit.id);
      const image = make("img", { src: `/images/${encodeURIComponent(hit.id)}`, alt: facts || hit.id, loading: "lazy" });
      return make("li", { className: only ? "only" : "" }, image,
        make("div", { className: "number" }, hit.score.toFixed(3)), make("div", { className: "muted" }, facts || hit.id));
    });
    const list = hits.length ? make("ol", { className: "hits" }, ...hits) : make("p", {}, "No image meets the conditions.");
    return make("div", { className: "card" }, make("h3", {}, titleOf(answer.version)), list);
  });
}

// -- versions -----------------------------------------------------------------------------------------------
const titleOf = (id) => (id === store.serves ? `${id} (serves)` : id === store.shadow ? `${id} (shadow)` : id);
function options() {
  const loaded = store.versions.filter((version) => version.loaded).map((version) => version.id);
  for (const [id, empty] of [["left", false], ["right", true]]) {
    const select = $(id), before = select.value;
    select.replaceChildren(...(empty ? [make("option", { value: "" }, "none")] : []),
      ...loaded.map((version) => make("option", { value: version }, titleOf(version))));
    const other = loaded.find((version) => version !== store.serves) || "";
    const first = select.options.length && !select.dataset.known;
    select.value = first ? (empty ? other : store.serves) : (loaded.includes(before) && !(!empty && before === select.dataset.serves) ? before : empty ? "" : store.serves);
    select.dataset.serves = store.serves; // whoever looks at the version that serves goes on to do so after a switch
    select.dataset.known = "yes";
  }
}
const number = (value, digits = 3) => (value === null || value === undefined ? "" : Number(value).toFixed(digits));
function interval(gate) {
  if (gate.value === null) return "";
  return gate.low === null || gate.high === null ? number(gate.value) : `${number(gate.value)} [${number(gate.low)}, ${number(gate.high)}]`;
}
function card(version) {
  const state = make("span", { className: `badge ${version.state === "accepted" ? "good" : "bad"}` }, version.state);
  const heading = make("h3", {}, titleOf(version.id), state);
  const facts = [version.parent ? `from ${version.parent}` : "the first", version.created.replace("T", " ").replace("+00:00", " UTC")];
  if (version.data) facts.push(`learned ${version.rows.toLocaleString("en")} rows of ${version.data} (${version.held_out} held out)`);
  if (version.share !== null && version.share !== 1) facts.push(`${100 * version.share} % of the way`);
  const node = make("div", { className: "card" }, heading, make("p", { className: "muted" }, facts.filter(Boolean).join(" · ")));
  if (version.gates.length) {
    const head = make("tr", {}, ...["Gate", "Result", "Measured", "Limit", "Why"].map((text) => make("th", { scope: "col" }, text)));
    const rows = version.gates.map((gate) => make("tr", {}, make("td", {}, gate.name), make("td", {}, gate.state),
      make("td", { className: "number" }, interval(gate)), make("td", { className: "number" }, number(gate.limit)), make("td", {}, gate.reason)));
    node.append(make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Gates of ${version.id}` }, make("table", {}, head, ...rows)));
  }
  const names = { diagnosis: "Score matrix and diagnosis", "blind-pairs": "Blind pairs" };
  for (const page of version.pages) {
    node.append(make("p", {}, make("a", { href: `/versions/${version.id}/${page}` }, names[page] || page)));
  }
  const buttons = make("p", { className: "row" });
  if (!version.serves && version.state !== "damaged") {
    buttons.append(button(`Promote ${version.id}`, "", () => change("/promote", { version: version.id })));
  }
  if (!version.loaded && version.state !== "damaged") {
    buttons.append(button(`Load ${version.id} to compare`, "plain", () => change("/load", { version: version.id })));
  }
  if (buttons.childNodes.length) node.append(buttons);
  return node;
}
const button = (text, kind, act) => {
  const node = make("button", { type: "button", className: kind }, text);
  node.addEventListener("click", act);
  return node;
};
function curve(name, title) {
  const points = store.versions.map((version) => ({ id: version.id, gate: version.gates.find((gate) => gate.name === name && gate.value !== null) }))
    .filter((point) => point.gate);
  if (!points.length) return null;
  const all = points.flatMap(({ gate }) => [gate.value, gate.low, gate.high, gate.limit]).filter((value) => value !== null);
  const low = Math.min(0, ...all), high = Math.max(0, ...all), span = high - low || 1;
  const width = 120 + 80 * points.length, x = (i) => 100 + 80 * i, y = (value) => 20 + (150 * (high - value)) / span;
  const picture = drawn("svg", { viewBox: `0 0 ${width} 210`, width, height: 210, role: "img",
    "aria-label": `${title}: ${points.map(({ id, gate }) => `${id} ${interval(gate)}`).join("; ")}` });
  for (const value of new Set([low, 0, high])) {
    picture.append(drawn("line", { class: "axis", x1: 60, x2: width - 10, y1: y(value), y2: y(value) }));
    picture.append(drawn("text", { x: 52, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  points.forEach(({ id, gate }, i) => {
    if (gate.limit !== null) picture.append(drawn("line", { class: "limit", x1: x(i) - 25, x2: x(i) + 25, y1: y(gate.limit), y2: y(gate.limit) }));
    if (gate.low !== null && gate.high !== null) picture.append(drawn("line", { class: "mark", x1: x(i), x2: x(i), y1: y(gate.low), y2: y(gate.high) }));
    picture.append(drawn("circle", { class: "mark", cx: x(i), cy: y(gate.value), r: 4 }), drawn("text", { x: x(i), y: 200, "text-anchor": "middle" }, id));
  });
  return make("div", {}, make("h3", {}, title), make("div", { className: "scroll" }, picture));
}
let shown = "";
async function versions() {
  const found = await ask("/versions");
  if (shown === JSON.stringify(found)) return; // drawing again would take the focus from a button
  shown = JSON.stringify(found);
  store = found;
  options();
  $("version-list").replaceChildren(...[...store.versions].reverse().map(card));
  const drawnCurves = [curve("gain", "Gain on new held-out rows (dashed: limit)"), curve("retention", "Loss on what must be kept (dashed: limit)")].filter(Boolean);
  $("curves").replaceChildren(...(drawnCurves.length ? drawnCurves : [make("p", { className: "muted" }, "No update has been measured yet.")]));
}

// -- service ------------------------------------------------------------------------------------------------
async function change(path, document) {
  $("service-error").textContent = "";
  if (!$("token").value.trim()) {
    show($("tab-service"));
    $("service-error").textContent = "Give the token first, then press the button again.";
    $("token").focus();
    return;
  }
  try {
    await ask(path, withToken(document ? sent(document) : { method: "POST" }));
    await refresh();
  } catch (problem) {
    show($("tab-service"));
    $("service-error").textContent = problem.message;
  }
}
$("rollback").addEventListener("click", () => change("/rollback"));
const facts = (list, entries) => $(list).replaceChildren(...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
async function health() {
  const found = await ask("/healthz");
  const well = found.status === "ok";
  $("status").textContent = well ? `${found.version} serves` : `${found.version} serves; ${found.wanted || "the store"} cannot: ${found.reason}`;
  $("status").className = well ? "" : "bad";
  facts("health", [["Serves", found.version], ["In memory", found.loaded.join(", ")], ["State", well ? "ok" : found.reason],
    ["Up", `${Math.round(found.uptime_seconds)} s`], ["Waiting", found.waiting]]);
}
async function service() {
  try {
    const found = await ask("/shadow", withToken({}));
    const kinds = Object.entries(found.kinds);
    const rows = kinds.map(([kind, of]) => make("tr", {}, ...[kind, of.compared, of.top1_changed, `${(100 * of.overlap).toFixed(1)} %`, of.dropped]
      .map((text) => make("td", { className: "number" }, String(text)))));
    const head = make("tr", {}, ...["Requests", "Compared", "Best changed", "Overlap", "Left out"].map((text) => make("th", { scope: "col" }, text)));
    const recent = found.recent.slice(0, 10).map((of) => make("li", {}, `${of.kind}: ${of.top1.join(" → ")} (overlap ${of.overlap})`));
    $("shadow").replaceChildren(
      make("p", {}, found.shadow ? `${found.shadow} answers too; nobody sees its answers.` : "No shadow version (--shadow VERSION)."),
      ...(kinds.length ? [make("div", { className: "scroll" }, make("table", {}, head, ...rows))] : []),
      ...(recent.length ? [make("h3", {}, "Last differences"), make("ul", {}, ...recent)] : []));
  } catch (problem) {
    $("service-error").textContent = problem.message;
  }
  try {
    const found = await ask("/index");
    $("index").replaceChildren(make("p", {}, `${found.items.toLocaleString("en")} images.`), ...found.spaces.map((space) => {
      const bar = make("progress", { max: Math.max(1, found.items), value: space.vectors, ariaLabel: `Vectors of ${space.version}` });
      return make("p", {}, `Vectors of ${space.version}${space.answers ? " (answers)" : ""}: ${space.vectors.toLocaleString("en")} of ${found.items.toLocaleString("en")} `, bar);
    }));
  } catch (problem) {
    $("index").replaceChildren(make("p", { className: "muted" }, problem.message));
  }
}
async function refresh() {
  try {
    await health();
    await versions();
    if (!$("service").hidden) await service();
  } catch (problem) {
    $("status").textContent = problem.message;
    $("status").className = "bad";
  }
}
const asked = tabs.find((tab) => tab.getAttribute("aria-controls") === location.hash.slice(2));
if (asked) show(asked);
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
