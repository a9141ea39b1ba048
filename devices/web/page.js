// The page: keeps the way to the host open, a worker at work, and what the worker said until the
// host has it. Every message of a worker is numbered; after a cut the host says up to which number
// it has them, and the page goes on behind it.

const BEAT_S = 2;
const PAUSES_MS = [200, 5000]; // between two tries to reach the host: the first, and the longest
const STOP_MS = 2000; // that a worker may take to see that it shall stop
const ROW = 0, RUNS = 1; // kinds of binary message

const $ = (id) => document.getElementById(id);
const here = new URL(".", location.href);

// A reload is the same page; a second tab or another phone is not.
const id = sessionStorage.getItem("hetero") ?? randomId();
sessionStorage.setItem("hetero", id);

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((x) => x.toString(16)).join("-");
}

/** What a browser tells of the machine it runs on: little, and not the processor. */
async function machine() {
  const told = navigator.userAgentData;
  const more = await told
    ?.getHighEntropyValues(["architecture", "bitness", "model", "platformVersion", "fullVersionList"])
    .catch(() => undefined);
  const parts = [more?.model, more?.architecture, more?.bitness && `${more.bitness} bit`];
  const features = [];
  if (self.crossOriginIsolated) features.push("isolated");
  if (self.isSecureContext) features.push("secure");
  if (navigator.gpu) features.push("webgpu");
  return {
    cpu: parts.filter(Boolean).join(", ") || "not told by the browser",
    cpus: navigator.hardwareConcurrency ?? 0,
    features,
    system: navigator.userAgent.slice(0, 300),
  };
}

const facts = () => ({
  user_agent: navigator.userAgent.slice(0, 300),
  cross_origin_isolated: self.crossOriginIsolated ? "yes" : "no",
  secure_context: self.isSecureContext ? "yes" : "no",
});

// -- what people see --------------------------------------------------------------------------

const STATES = {
  connecting: ["Connecting…", "Looking for the computer that shows this page."],
  waiting: ["Ready", "Waiting for a model. Keep this page open and in front."],
  running: ["Running", "Keep this page open and in front, the phone plugged in or well charged."],
  done: ["Done", "The computer has everything. You can close this page, or keep it for more."],
  lost: ["No connection", "The work goes on. Trying to reach the computer again…"],
  error: ["Stopped", ""],
};

const PHASES = {
  load: "loading the model",
  embed: "embedding",
  warm: "warming up",
  measure: "measuring",
  finish: "finishing",
};

function show(state, text) {
  const [title, said] = STATES[state];
  document.body.dataset.state = state;
  $("title").textContent = title;
  $("text").textContent = text ?? said;
}

function showProgress() {
  const of = work?.order.job.inputs.shape[0] ?? 0;
  $("bar").value = of ? work.rows / of : 0;
  const doing = work && !work.ended ? `${PHASES[work.phase] ?? work.phase}: ` : "";
  $("phase").textContent = work
    ? `${doing}${work.rows} of ${of} pictures, ${work.runs} timed runs`
    : "";
  $("model").textContent = work ? `${work.order.job.runtime}, ${work.order.provider}` : "";
}

async function showMachine() {
  const found = await machine();
  const yes = (name) => (found.features.includes(name) ? "yes" : "no");
  $("threads").textContent = yes("isolated") === "yes" ? `up to ${found.cpus}` : "1 (page is not isolated)";
  $("gpu").textContent = yes("webgpu");
  $("hint").hidden = self.isSecureContext;
}

// The screen stays on while a model runs, where the browser can see to it.
let lock;
async function stayAwake() {
  if (!lock || lock.released) lock = await navigator.wakeLock?.request("screen").catch(() => undefined);
}

// -- one worker at a time ---------------------------------------------------------------------

/** What is known of the worker, and its messages that the host does not have yet. */
let work;

function start(order) {
  end();
  const worker = new Worker("worker.js");
  work = {
    number: order.worker, order, worker, box: [], seq: 0, ended: false, began_ms: performance.now(),
    phase: "load", rows: 0, runs: 0, hidden_ms: 0, measured_ms: 0, since_ms: undefined,
  };
  const mine = work;
  worker.onmessage = ({ data }) => work === mine && take(data);
  worker.onerror = (event) => {
    event.preventDefault?.();
    if (work !== mine || mine.ended) return;
    sayError(`the browser stopped it: ${event.message || "no reason given"}`);
  };
  const beat_s = Math.max(0.05, order.job.plan.beat_s ?? BEAT_S);
  mine.beats = setInterval(() => {
    if (mine.ended) return;
    const { phase, rows, runs } = mine;
    push({ hetero: "beat", t_s: seconds(mine), phase, rows, runs });
  }, beat_s * 1000);
  worker.postMessage(order);
  stayAwake();
  show("running");
  showProgress();
}

const seconds = (of) => Math.round(performance.now() - of.began_ms) / 1000;

function sayError(text) {
  push({ hetero: "error", t_s: seconds(work), kind: "worker-failed", text: text.slice(0, 400) });
  work.ended = true;
  show("error", text);
}

/** End the worker and forget what it said. */
function end() {
  if (!work) return;
  clearInterval(work.beats);
  work.worker.terminate();
  work = undefined;
}

function take(data) {
  if (data.phase) {
    noteVisibility();
    work.phase = data.phase;
  }
  if (data.software) work.software = true;
  if (data.event) {
    const event = data.event;
    if (event.hetero === "first") [work.rows, work.runs] = [event.start, event.runs];
    if (event.hetero === "done") event.disturbed = disturbed();
    push(event);
    if (event.hetero === "done") show("done");
    if (event.hetero === "error") show("error", `${event.kind}: ${event.text}`);
    if (event.hetero === "stopped") show("waiting");
  }
  if (data.row) {
    push(data.row, ROW);
    work.rows = data.row.i + data.row.n;
  }
  if (data.runs) {
    push(data.runs, RUNS);
    work.runs = data.runs.i + data.runs.n;
  }
  if (data.ended) {
    work.ended = true;
    clearInterval(work.beats);
  }
  showProgress();
}

/** Why the times are not to be trusted, or "". */
function disturbed() {
  noteVisibility();
  if (work.software) return "WebGPU is computed by the processor here, there is no GPU";
  const { hidden_ms, measured_ms } = work;
  if (!hidden_ms) return "";
  return `the page was hidden for ${Math.round(hidden_ms)} of ${Math.round(measured_ms)} ms`;
}

/** Add the time since the last look, while measuring, to what was hidden or shown. */
function noteVisibility() {
  if (!work) return;
  const now = performance.now();
  if (work.phase === "measure" && work.since_ms !== undefined) {
    work.measured_ms += now - work.since_ms;
    if (work.hidden) work.hidden_ms += now - work.since_ms;
  }
  work.since_ms = now;
  work.hidden = document.visibilityState !== "visible";
}

document.addEventListener("visibilitychange", () => {
  noteVisibility();
  if (work && !document.hidden) stayAwake();
});

// -- the way to the host ----------------------------------------------------------------------

let socket;
let pause_ms = PAUSES_MS[0];
let refused = false;

/** Number a message, keep it, and send it when there is a way. */
function push(content, kind) {
  work.seq += 1;
  const { seq, number } = work;
  const message = kind === undefined
    ? JSON.stringify({ seq, worker: number, event: content })
    : frame(kind, number, seq, content);
  work.box.push({ seq, message });
  send(message);
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN && socket.greeted) socket.send(message);
}

/** kind, worker, seq, i, n, 0 as uint32; t_s as float64; then times as int64 and rows as float32. */
function frame(kind, number, seq, { i, n, t_s, lat, rows, ns }) {
  const times = kind === ROW ? [BigInt(ns)] : lat;
  const bytes = new ArrayBuffer(32 + 8 * times.length + rows.byteLength);
  new Uint32Array(bytes, 0, 6).set([kind, number, seq, i, n, 0]);
  new Float64Array(bytes, 24, 1)[0] = t_s;
  new BigInt64Array(bytes, 32, times.length).set(times);
  new Float32Array(bytes, 32 + 8 * times.length).set(rows);
  return bytes;
}

/** The host has everything up to this number. */
function have(seq) {
  if (work) work.box = work.box.filter((x) => x.seq > seq);
}

async function connect() {
  const way = new URL("socket", here);
  way.protocol = way.protocol.replace("http", "ws");
  socket = new WebSocket(way);
  socket.binaryType = "arraybuffer";
  const mine = socket;
  socket.onopen = async () => {
    const about = { machine: await machine(), facts: facts() };
    if (mine.readyState === WebSocket.OPEN) {
      mine.send(JSON.stringify({ page: "hello", id, worker: work?.number ?? 0, ...about }));
    }
  };
  socket.onmessage = ({ data }) => mine === socket && hear(JSON.parse(data));
  socket.onclose = ({ code, reason }) => {
    if (mine !== socket || refused) return;
    if (code >= 4000) {
      refused = true;
      if (code !== 4000) end();
      show(code === 4000 ? "done" : "error", reason);
      return;
    }
    show(work && !work.ended ? "lost" : "connecting");
    setTimeout(connect, pause_ms);
    pause_ms = Math.min(2 * pause_ms, PAUSES_MS[1]);
  };
}

function hear(said) {
  if (said.do === "welcome") {
    pause_ms = PAUSES_MS[0];
    if (work && said.have === null) end(); // the host has given this worker up
    socket.greeted = true;
    if (work) {
      have(said.have);
      for (const { message } of work.box) socket.send(message);
    }
    if (!work) show("waiting");
    else if (!work.ended) show("running");
    else show("done");
    showProgress();
  } else if (said.do === "have") {
    if (work?.number === said.worker) have(said.seq);
  } else if (said.do === "start") {
    start({
      ...said,
      model: new URL(said.model, here).href,
      inputs: new URL(said.inputs, here).href,
    });
  } else if (said.do === "stop") {
    stop(said.worker);
  }
}

/** Ask the worker to stop, end it if it does not, and tell the host. */
function stop(number) {
  const mine = work;
  const gone = () => socket?.send(JSON.stringify({ page: "gone", worker: number }));
  if (mine?.number !== number) return gone();
  mine.worker.postMessage("stop");
  const asked_ms = performance.now();
  const look = setInterval(() => {
    if (work === mine && !mine.ended && performance.now() - asked_ms < STOP_MS) return;
    clearInterval(look);
    if (work === mine) end();
    show("waiting");
    showProgress();
    gone();
  }, 20);
}

// A mistake of the page itself ends the run in a way that the host hears of.
addEventListener("error", (event) => {
  if (work && !work.ended) sayError(`page: ${event.message}`);
});

show("connecting");
showProgress();
showMachine();
connect();
