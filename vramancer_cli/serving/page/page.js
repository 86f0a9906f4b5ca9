// The chat page: asks /v1/chat/completions, streams the answer, and shows who holds which layers.
// Text from a model or a machine only ever enters the page as text nodes.

const POLL_MS = 2000;
const NODE_COLOURS = 6;
const GIB = 1024 ** 3;

const $ = (id) => document.getElementById(id);
const page = {
  log: $("log"), scroll: $("scroll"), welcome: $("welcome"), question: $("question"),
  send: $("send"), stop: $("stop"), newChat: $("new-chat"), model: $("model"),
};

const examples = document.querySelectorAll(".examples button");

let history = [];        // the conversation as the API wants it
let answering = null;    // AbortController of the answer under way
let cluster = null;      // the last ClusterStatus
let asked = [];          // questions, for the up arrow
let token = sessionStorage.getItem("token") || "";

/* ---------- small tools ---------- */

function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function gib(bytes) {
  return bytes < GIB ? `${Math.round(bytes / 1024 ** 2)} MiB` : `${(bytes / GIB).toFixed(1)} GiB`;
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function colour(index) {
  return `var(--node-${index % NODE_COLOURS})`;
}

/** A square in a node's colour. Styles are set through the DOM, which the page's policy allows. */
function swatch(index) {
  const square = el("span", { className: "swatch" });
  square.style.setProperty("--node", colour(index));
  square.setAttribute("aria-hidden", "true");
  return square;
}

class ApiError extends Error {
  constructor(error) {
    super(error?.message || "The server failed without saying why.");
    this.code = error?.code;
  }
}

async function api(path, options = {}) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...options.headers };
  const reply = await fetch(path, { ...options, headers });
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  if (reply.status === 401) askForToken();
  throw new ApiError(body?.error ?? { message: `The server answered with status ${reply.status}.` });
}

/* ---------- a little Markdown, as DOM ---------- */

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return el("code", { textContent: part.slice(1, -1) });
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return el("strong", { textContent: part.slice(2, -2) });
    return document.createTextNode(part);
  });
}

function block(text) {
  const lines = text.split("\n");
  const heading = /^#{1,6} (.+)$/.exec(text);
  if (heading) return el("h3", {}, ...inline(heading[1]));
  for (const [tag, mark] of [["ul", /^[-*] (.*)$/], ["ol", /^\d+[.)] (.*)$/]]) {
    if (lines.every((line) => mark.test(line))) {
      const list = el(tag, {}, ...lines.map((line) => el("li", {}, ...inline(mark.exec(line)[1]))));
      if (tag === "ol") list.start = parseInt(text, 10);
      return list;
    }
  }
  return el("p", {}, ...inline(text));
}

function markdown(text) {
  // Odd parts stand inside a fence; an open one is still being written.
  return text.split(/^```[^\n]*$\n?/m).flatMap((part, index) => {
    if (index % 2) return [el("pre", {}, el("code", { textContent: part }))];
    return part.split(/\n{2,}/).map((lines) => lines.replace(/^\n+|\s+$/g, "")).filter(Boolean).map(block);
  });
}

/* ---------- one answer ---------- */

/** Yields every event of the stream; throws if it ends without [DONE], for then the answer was cut. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError({ message: "The answer was cut before its end." });
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const data = part.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error);
      yield event;
    }
  }
}

function ask(messages, signal) {
  return api("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: page.model.value, messages, stream: true, stream_options: { include_usage: true },
    }),
    signal,
  });
}

/** Asks, and when the context is full asks again without the oldest turns. Returns [reply, turns left out]. */
async function askFitting(messages, signal) {
  for (let left = 0; ; left += 2) {
    try {
      return [await ask(messages.slice(left), signal), left / 2];
    } catch (error) {
      if (error.code !== "context_length_exceeded" || left + 2 >= messages.length) throw error;
    }
  }
}

/** The message being written: redrawn at most once a frame. */
class Writing {
  constructor() {
    this.text = "";
    this.said = el("div", { className: "said waiting" });
    this.turn = el("article", { className: "turn" }, this.said);
    this.turn.setAttribute("aria-label", "Answer");
    this.turn.setAttribute("aria-busy", "true");
    this.frame = 0;
    page.log.append(this.turn);
  }

  add(text) {
    this.text += text;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    following(() => this.said.replaceChildren(...markdown(this.text)));
  }

  end(...after) {
    cancelAnimationFrame(this.frame);
    this.draw();
    this.said.classList.remove("waiting");
    this.turn.setAttribute("aria-busy", "false");
    following(() => this.turn.append(...after));
  }
}

async function send(text) {
  const before = cluster;
  const controller = new AbortController();
  const turns = history; // a new chat begins a new list, and this answer belongs to the old one
  begin(text, controller);
  const writing = new Writing();
  following(() => {}, true);
  const told = { started: performance.now(), first: 0, tokens: 0, leftOut: 0, finish: "" };
  let ending = [];
  try {
    await tell(writing, told, turns, controller.signal);
    ending = notes(told);
  } catch (error) {
    ending = [trouble(error)];
  }
  told.ended = performance.now();
  finish(writing.text, turns);
  writing.end(...ending);
  if (told.first) writing.turn.append(await footer(writing.text, told, before));
  following(() => {});
}

function begin(text, controller) {
  answering = controller;
  asked.push(text);
  history.push({ role: "user", content: text });
  page.welcome.hidden = true;
  page.newChat.hidden = false;
  page.stop.hidden = false;
  page.send.hidden = true;
  const mine = el("article", { className: "turn mine" }, el("div", { className: "said", textContent: text }));
  mine.setAttribute("aria-label", "You");
  page.log.append(mine);
}

async function tell(writing, told, turns, signal) {
  const [reply, leftOut] = await askFitting(turns, signal);
  told.leftOut = leftOut;
  for await (const event of events(reply.body)) {
    const choice = event.choices[0];
    if (choice?.delta?.content) {
      told.first ||= performance.now();
      writing.add(choice.delta.content);
    }
    told.finish = choice?.finish_reason ?? told.finish;
    told.tokens = event.usage?.completion_tokens ?? told.tokens;
  }
}

/** A question without an answer does not stay in the conversation: the next one would follow on nothing. */
function finish(text, turns) {
  if (text) turns.push({ role: "assistant", content: text });
  else turns.pop();
  answering = null;
  page.stop.hidden = true;
  page.send.hidden = false;
  fit();
}

function notes(told) {
  const lines = [];
  if (told.leftOut) lines.push(`The context is full: the first ${plural(told.leftOut, "exchange")} of this chat were left out.`);
  if (told.finish === "length") lines.push("The answer reached its length limit.");
  return lines.map((textContent) => el("p", { className: "aside-note", textContent }));
}

function trouble(error) {
  if (error.name === "AbortError") return el("p", { className: "aside-note", textContent: "Stopped." });
  const sentence = error instanceof ApiError ? error.message : "The connection to the server was lost.";
  const line = el("p", { className: "trouble", textContent: sentence });
  line.setAttribute("role", "alert");
  return line;
}

/** Speed, and the machines whose own count of work rose during this answer. */
async function footer(text, told, before) {
  const seconds = (told.ended - told.first) / 1000;
  const parts = [];
  if (told.tokens) parts.push(el("span", {}, el("b", { textContent: plural(told.tokens, "token") })));
  if (told.tokens > 1 && seconds > 0) {
    parts.push(el("span", {}, el("b", { textContent: ((told.tokens - 1) / seconds).toFixed(1) }), " tokens/s"));
  }
  parts.push(el("span", { textContent: `first after ${((told.first - told.started) / 1000).toFixed(2)} s` }));
  const foot = el("div", { className: "foot" }, ...parts, ...(await workers(before)));
  if (navigator.clipboard) {
    const copy = el("button", { type: "button", textContent: "Copy" });
    copy.onclick = () => navigator.clipboard.writeText(text).then(() => { copy.textContent = "Copied"; });
    foot.append(copy);
  }
  return foot;
}

async function workers(before) {
  await poll(true);
  const counted = new Map(parts(before).map(({ id, device }) => [id, device.layer_tokens]));
  return holders(cluster)
    .filter(({ id, device }) => device.layer_tokens > (counted.get(id) ?? 0))
    .map(({ name, device, index }) => el("span", { className: "who" }, swatch(index), `${name} ${range(device)}`));
}

/** Runs a change and keeps the end of the conversation in view if it was in view. */
function following(change, always = false) {
  const near = page.scroll.scrollHeight - page.scroll.scrollTop - page.scroll.clientHeight < 80;
  change();
  if (near || always) page.scroll.scrollTop = page.scroll.scrollHeight;
}

/* ---------- the machines ---------- */

function range(node) {
  const [start, end] = node.layers;
  return end - start === 1 ? `layer ${start}` : `layers ${start}–${end - 1}`;
}

/** The devices of a node; of a node with one, the node itself, which says all of it. */
function devicesOf(node) {
  return node.devices?.length > 1 ? node.devices : [node];
}

/** Every device of every node, each with its place among all (its colour). */
function parts(status) {
  return (status?.nodes ?? [])
    .flatMap((node) => devicesOf(node).map((device) => ({
      node, device, id: `${node.id} ${device.device}`, name: device === node ? node.name : `${node.name} ${device.device}`,
    })))
    .map((part, index) => ({ ...part, index }));
}

/** Those that hold layers, in layer order. */
function holders(status) {
  return parts(status)
    .filter(({ device }) => device.layers && device.layers[1] > device.layers[0])
    .sort((a, b) => a.device.layers[0] - b.device.layers[0]);
}

function showState(state, words) {
  $("state").dataset.state = state;
  if ($("state-text").textContent !== words) $("state-text").textContent = words;
}

function showCluster(status) {
  const held = holders(status);
  const here = status.nodes.filter((node) => !["lost", "asleep"].includes(node.state)).length;
  showState(status.state, status.state);
  $("summary").textContent = `${plural(here, "machine")}, ${plural(status.layer_count, "layer")}`;
  $("welcome-line").textContent = status.state === "ready"
    ? `${status.model} answers from ${plural(new Set(held.map(({ node }) => node.id)).size, "machine")}.`
    : status.reason || "The model is not ready yet.";
  showBar(status, held);
  $("nodes").replaceChildren(...status.nodes.map((node) => nodeItem(node, parts(status).filter((part) => part.node === node))));
  showFigures(status);
}

function showBar(status, held) {
  $("bar").replaceChildren(...held.map(({ node, device, name, index }) => {
    const part = el("span", { title: `${name}: ${range(device)}` });
    part.dataset.state = node.state;
    part.style.flexGrow = device.layers[1] - device.layers[0];
    part.style.setProperty("--node", colour(index));
    part.style.setProperty("--loaded", `${Math.round(node.loaded_fraction * 100)}%`);
    return part;
  }));
  $("bar").setAttribute("aria-label", held.length
    ? held.map(({ name, device }) => `${name}: ${range(device)}`).join("; ")
    : "No layers are placed yet.");
  $("scale").replaceChildren(...(held.length ? ["layer 0", `${status.layer_count - 1}`] : []).map((textContent) => el("span", { textContent })));
}

const BAD_STATES = ["lost", "quarantined"];

function nodeItem(node, own) {
  const head = el("div", { className: "node-head" }, swatch(own[0].index), el("b", { textContent: node.name, title: node.name }));
  if (node.role === "head") head.append(el("span", { className: "tag", textContent: "head" }));
  if (node.state !== "ready") head.append(el("span", { className: BAD_STATES.includes(node.state) ? "tag bad" : "tag", textContent: stateWords(node) }));
  head.append(el("span", { className: "held", textContent: node.layers ? range(node) : "no layers" }));
  const item = el("li", { className: "node" }, head, el("p", { textContent: nodeLine(node) }));
  item.dataset.state = node.state;
  if (fetching(node)) item.append(gauge(own[0].index, node.fetched_bytes, node.fetch_bytes, "fetched"));
  if (own.length === 1 && node.memory_limit_bytes > 0) item.append(memory(node, own[0].index));
  if (own.length > 1) item.append(...own.flatMap(deviceLines));
  item.title = node.why;
  if (node.why && (!node.layers || node.state !== "ready")) item.append(el("p", { textContent: node.why }));
  return item;
}

/** A device of several: its name and layers, and its memory. */
function deviceLines({ device, index }) {
  const held = el("span", { className: "held", textContent: device.layers ? range(device) : "no layers" });
  const head = el("div", { className: "device-head" }, swatch(index), el("span", { textContent: device.device }), held);
  return [head, memory(device, index)];
}

/** Whether a node is still getting weights that it lacks. */
function fetching(node) {
  return node.state === "loading" && node.fetched_bytes < node.fetch_bytes;
}

function stateWords(node) {
  if (fetching(node)) return `fetching ${Math.floor((100 * node.fetched_bytes) / node.fetch_bytes)} %`;
  return node.state === "loading" ? `loading ${Math.round(node.loaded_fraction * 100)} %` : node.state;
}

function nodeLine(node) {
  const line = [[...new Set(devicesOf(node).map((device) => device.device_name || device.device))].join(" + "), node.os];
  if (node.round_trip_s !== null) line.push(`${(node.round_trip_s * 1000).toFixed(1)} ms away`);
  if (!node.direct) line.push("through the head");
  return line.filter(Boolean).join(" · ");
}

function memory(device, index) {
  return gauge(index, device.memory_used_bytes, device.memory_limit_bytes, "");
}

/** A bar, and its bytes in words. */
function gauge(index, usedBytes, allBytes, word) {
  const bar = el("span");
  bar.setAttribute("aria-hidden", "true");
  bar.style.setProperty("--node", colour(index));
  bar.style.setProperty("--used", `${allBytes ? Math.min(100, Math.round((100 * usedBytes) / allBytes)) : 0}%`);
  const words = [gib(usedBytes), "of", gib(allBytes), word].filter(Boolean).join(" ");
  return el("div", { className: "memory" }, bar, el("span", { textContent: words }));
}

/** How much of all prompts did not have to be computed. */
function cached(status) {
  const { prefix_found_tokens: found, prefix_asked_tokens: asked } = status;
  return asked ? `${Math.round((100 * found) / asked)} % of ${plural(asked, "prompt token")}` : "nothing asked yet";
}

function showFigures(status) {
  const figures = [
    ["Speed now", `${status.tokens_per_s.toFixed(1)} tokens/s`],
    ["Answering", `${status.running}, waiting ${status.waiting}`],
    ["Prefix cache", cached(status)],
    ["Context", plural(status.context_tokens, "token")],
    ["Numbers", status.quantize === "none" ? status.dtype : `${status.dtype}, ${status.quantize} weights`],
    ["Up", duration(status.uptime_s)],
    ["API", `${location.origin}/v1`],
  ];
  $("figures").replaceChildren(...figures.flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", { textContent: value })]));
}

async function poll(fresh = false) {
  try {
    const reply = await api(`/api/pipeline/status${fresh ? "?fresh=true" : ""}`);
    cluster = await reply.json();
    showCluster(cluster);
    if (cluster.state === "ready" && !page.model.value) await showModels();
  } catch (error) {
    if (!(error instanceof ApiError)) showState("away", "not reachable");
  }
}

async function showModels() {
  const { data } = await (await api("/v1/models")).json();
  page.model.replaceChildren(...data.map(({ id }) => el("option", { value: id, textContent: id })));
  page.model.hidden = data.length < 2;
  $("model-name").textContent = data.length === 1 ? data[0].id : "";
  fit();
}

/** Polls only while somebody looks. */
async function watch() {
  for (;;) {
    if (document.visibilityState === "visible") await poll();
    await new Promise((wake) => setTimeout(wake, POLL_MS));
  }
}

/* ---------- the token ---------- */

function askForToken() {
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

$("token-form").addEventListener("submit", () => {
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  poll();
});

/* ---------- hands on keys ---------- */

/** The question's box is as tall as the question; there must be something to send and a model to send it to. */
function fit() {
  page.question.style.height = "auto";
  page.question.style.height = `${page.question.scrollHeight}px`;
  page.send.disabled = !page.question.value.trim() || !page.model.value;
  for (const example of examples) example.disabled = !page.model.value;
}

function submit(text) {
  if (!text || answering || !page.model.value) return;
  page.question.value = "";
  fit();
  page.question.focus();
  send(text);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(page.question.value.trim());
});

page.question.addEventListener("input", fit);
page.question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit(page.question.value.trim());
  } else if (event.key === "ArrowUp" && !page.question.value && asked.length) {
    event.preventDefault();
    page.question.value = asked.at(-1);
    fit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && answering) answering.abort();
  const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    page.question.focus();
  }
});

page.stop.addEventListener("click", () => answering?.abort());

page.newChat.addEventListener("click", () => {
  answering?.abort();
  history = [];
  page.log.replaceChildren();
  page.welcome.hidden = false;
  page.newChat.hidden = true;
  page.question.focus();
});

for (const example of examples) {
  example.addEventListener("click", () => submit(example.textContent));
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") poll();
});

if (matchMedia("(max-width: 860px)").matches) $("machines").open = false;
fit();
watch();
