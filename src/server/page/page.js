"use strict";
// Chat with streaming, and graphs of the engine from /metrics. No library, nothing from outside.
const $ = (id) => document.getElementById(id);
const history = [];  // {role, content}
let running = null;  // AbortController of the reply that is being made
let model = "";

const headers = () => {
  const all = {"Content-Type": "application/json"};
  if ($("key").value) all.Authorization = "Bearer " + $("key").value;
  return all;
};

// --- tabs -------------------------------------------------------------------------------------
const tabs = ["chat", "engine"];
function show(name, focus) {
  for (const tab of tabs) {
    const chosen = tab === name;
    $(tab).hidden = !chosen;
    $("tab-" + tab).setAttribute("aria-selected", chosen);
    $("tab-" + tab).tabIndex = chosen ? 0 : -1;
  }
  if (focus) $("tab-" + name).focus();
}
for (const tab of tabs) {
  $("tab-" + tab).addEventListener("click", () => show(tab));
  $("tab-" + tab).addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step) show(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length], true);
  });
}

// --- chat -------------------------------------------------------------------------------------
function bubble(role, text) {
  const box = document.createElement("div");
  box.className = "message " + role;
  const reasoning = document.createElement("div");
  reasoning.className = "reasoning";
  const content = document.createElement("div");
  content.textContent = text;
  box.append(reasoning, content);
  $("messages").append(box);
  box.scrollIntoView({block: "end"});
  return {box, reasoning, content};
}

function settings() {
  const body = {model, stream: true, stream_options: {include_usage: true}};
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"])
    if ($(name).value !== "") body[name] = Number($(name).value);
  if ($("thinking").checked) body.chat_template_kwargs = {thinking: true};
  return body;
}

function request() {
  const body = settings();
  if ($("mode").value === "text") {
    delete body.chat_template_kwargs;
    body.prompt = history.map((m) => m.content).join("");
    return ["/v1/completions", body];
  }
  body.messages = [...history];
  if ($("system").value) body.messages.unshift({role: "system", content: $("system").value});
  return ["/v1/chat/completions", body];
}

// The JSON of each event of a stream.
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    held += decoder.decode(value, {stream: true});
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function report(usage, start, first) {
  const seconds = (performance.now() - first) / 1000;
  const tokens = usage.completion_tokens;
  let text = `${tokens} tokens, first after ${((first - start) / 1000).toFixed(2)} s`;
  if (tokens > 1 && seconds > 0) text += `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s`;
  if (usage.prompt_tokens_details.cached_tokens)
    text += `, ${usage.prompt_tokens_details.cached_tokens} of ${usage.prompt_tokens} prompt tokens cached`;
  return text;
}

async function drafts() {
  const m = await metrics().catch(() => ({}));
  return [m["spec_decode_num_draft_tokens_total"] || 0, m["spec_decode_num_accepted_tokens_total"] || 0];
}

// Lets the page do what waits for it, as keys: a fast stream has always something to read. Timers
// would be slow in a tab that nobody looks at.
const rest = () => new Promise((resolve) => {
  const {port1, port2} = new MessageChannel();
  port1.onmessage = resolve;
  port2.postMessage(null);
});
const FRAME = 16;  // ms

async function reply() {
  running = new AbortController();
  buttons();
  const out = bubble("assistant", "");
  const [path, body] = request();
  const before = await drafts();
  const start = performance.now();
  let first = 0, content = "", reasoning = "", note = "", due = 0, rested = start;
  const render = () => {
    due = 0;
    out.reasoning.textContent = reasoning;
    out.content.textContent = content;
    out.box.scrollIntoView({block: "end"});
  };
  $("status").textContent = "waiting ...";
  try {
    const response = await fetch(path, {method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal});
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) note = report(event.usage, start, first || performance.now());
      for (const choice of event.choices) {
        const delta = choice.delta || {content: choice.text};
        if (!first && (delta.content || delta.reasoning_content)) first = performance.now();
        if (delta.reasoning_content) reasoning += delta.reasoning_content;
        if (delta.content) content += delta.content;
      }
      if (first && !note) $("status").textContent = "writing ...";
      due ||= setTimeout(render, FRAME);
      if (performance.now() - rested > FRAME) {
        await rest();
        rested = performance.now();
      }
    }
    const after = await drafts();
    if (after[0] > before[0])
      note += `, drafts accepted ${(100 * (after[1] - before[1]) / (after[0] - before[0])).toFixed(0)}%`;
    $("status").textContent = note;
  } catch (error) {
    const stopped = error.name === "AbortError";
    $("status").textContent = stopped ? "stopped" : error.message;
    if (!stopped) out.box.classList.add("error");
  }
  clearTimeout(due);
  render();
  history.push({role: "assistant", content});
  running = null;
  buttons();
  $("input").focus();
}

function buttons() {
  $("send").disabled = $("clear").disabled = running !== null;
  $("stop").disabled = running === null;
  $("again").disabled = running !== null || history.length === 0;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("input").value;
  if (running || text === "") return;
  $("input").value = "";
  history.push({role: "user", content: text});
  bubble("user", text);
  reply();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
const stop = () => running && running.abort();
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
$("again").addEventListener("click", () => {
  if (history[history.length - 1].role === "assistant") {
    history.pop();
    $("messages").lastElementChild.remove();
  }
  reply();
});
$("clear").addEventListener("click", () => {
  history.length = 0;
  $("messages").replaceChildren();
  $("status").textContent = "";
  buttons();
});

// --- engine -----------------------------------------------------------------------------------
async function metrics() {
  const text = await (await fetch("/metrics")).text();
  const values = {};
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const at = line.lastIndexOf(" ");
    const name = line.slice(0, at).replace(/^hadal:/, "").replace(/model_name="(\\.|[^"\\])*",?/, "").replace("{}", "");
    values[name] = Number(line.slice(at + 1));
  }
  return values;
}

// The q-quantile of what a histogram gained between two readings, in milliseconds.
function quantile(now, before, name, q) {
  const buckets = [];
  for (const key of Object.keys(now)) {
    const match = key.match(new RegExp(`^${name}_bucket{le="(.*)"}$`));
    if (match) buckets.push([match[1] === "+Inf" ? Infinity : Number(match[1]), now[key] - (before[key] || 0)]);
  }
  buckets.sort((a, b) => a[0] - b[0]);
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!total) return null;
  let low = 0, below = 0;
  for (const [bound, count] of buckets) {
    if (count >= q * total) {
      const high = bound === Infinity ? low : bound;
      return 1000 * (low + (high - low) * (q * total - below) / Math.max(1, count - below));
    }
    low = bound;
    below = count;
  }
  return null;
}

const kPoints = 120;
const graphs = [
  {title: "requests", names: ["running", "waiting"], unit: ""},
  {title: "cache", names: ["in use"], unit: "%"},
  {title: "speed", names: ["generated", "prompt"], unit: "tokens/s"},
  {title: "first token", names: ["median", "99%"], unit: "ms"},
  {title: "between tokens", names: ["median", "99%"], unit: "ms"},
  {title: "drafts", names: ["accepted"], unit: "%"},
];
for (const graph of graphs) {
  graph.lines = graph.names.map(() => []);
  const figure = document.createElement("figure");
  figure.innerHTML = '<figcaption></figcaption><svg viewBox="0 0 120 100" preserveAspectRatio="none" role="img"><polyline></polyline><polyline class="second"></polyline></svg>';
  $("graphs").append(figure);
  graph.figure = figure;
}

function draw(graph, values) {
  values.forEach((value, i) => {
    graph.lines[i].push(value);
    if (graph.lines[i].length > kPoints) graph.lines[i].shift();
  });
  const top = Math.max(1e-9, ...graph.lines.flat().filter((v) => v !== null));
  const tags = ["b", "i"];
  const text = graph.names.map((name, i) => {
    const value = values[i] === null ? "-" : values[i] >= 100 ? values[i].toFixed(0) : Number(values[i].toFixed(1));
    return `<${tags[i]}>${name} ${value}</${tags[i]}>`;
  });
  graph.figure.querySelector("figcaption").innerHTML = `${graph.title} ${text.join(" ")} ${graph.unit}`;
  graph.figure.querySelector("svg").setAttribute("aria-label", `${graph.title}: ${graph.names.map((n, i) => n + " " + values[i]).join(", ")}`);
  graph.figure.querySelectorAll("polyline").forEach((line, i) => {
    const points = (graph.lines[i] || []).map((v, x) => [x + kPoints - graph.lines[i].length, v]);
    line.setAttribute("points", points.filter((p) => p[1] !== null).map(([x, v]) => `${x},${97 - 94 * v / top}`).join(" "));
  });
}

let last = null, lastTime = 0;
async function tick() {
  try {
    const now = await metrics();
    const time = performance.now() / 1000;
    const was = last || now, seconds = Math.max(1e-3, time - lastTime);
    const rate = (name) => last ? (now[name] - was[name]) / seconds : 0;
    const gained = (name) => now[name] - was[name];
    const drafted = gained("spec_decode_num_draft_tokens_total");
    draw(graphs[0], [now.num_requests_running, now.num_requests_waiting]);
    draw(graphs[1], [100 * now.kv_cache_usage_perc]);
    draw(graphs[2], [rate("generation_tokens_total"), rate("prompt_tokens_total")]);
    draw(graphs[3], [0.5, 0.99].map((q) => quantile(now, was, "time_to_first_token_seconds", q)));
    draw(graphs[4], [0.5, 0.99].map((q) => quantile(now, was, "inter_token_latency_seconds", q)));
    draw(graphs[5], [drafted > 0 ? 100 * gained("spec_decode_num_accepted_tokens_total") / drafted : null]);
    $("totals").textContent = `${now.generation_tokens_total} tokens generated, ${now.prompt_tokens_total} prompt tokens, ` +
      `${now.prefix_cache_hits_total} of them from the prefix cache, ${now.num_preemptions_total} preemptions, ${now.requests_rejected_total} refused`;
    last = now;
    lastTime = time;
  } catch (error) {
    $("totals").textContent = "no answer from the server";
  }
  setTimeout(tick, 1000);
}

async function describe() {
  try {
    const response = await fetch("/v1/models", {headers: headers()});
    if (!response.ok) throw new Error((await response.json()).error.message);
    const card = (await response.json()).data[0];
    model = card.id;
    $("model").textContent = `${card.id}, ${card.max_model_len} tokens`;
  } catch (error) {
    $("status").textContent = error.message;
  }
}
$("key").addEventListener("change", describe);
describe();
tick();
