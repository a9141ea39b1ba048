// The far end in a browser: one job, one worker, then it is gone. It says what _protocol.py says;
// the page that started it carries the events on, and keeps them until they have arrived.
//
// A classic worker, not a module: LiteRT.js loads its WebAssembly by importScripts.
"use strict";

const began_ms = performance.now();
const assets = new URL("assets/", self.location.href).href;
/** Bytes fetched at once, so that a bad network costs one part and not the whole. */
const PART_BYTES = 4 << 20;
/** A block of runs lasts this many steps of the clock, or is one run. */
const STEPS = 100;
const MAX_BLOCK = 1000;
/** Time between two looks at what the page says, and between two reports of measured runs. */
const LOOK_MS = 50;

const say = (event, fields = {}) => {
  const t_s = Math.round(performance.now() - began_ms) / 1000;
  postMessage({ event: { hetero: event, t_s, ...fields } });
};

/** A foreseen end: the kind is for the host, the text for people. */
class Refused extends Error {
  constructor(kind, text) {
    super(text);
    this.kind = kind;
  }
}

/** The host wants an end. */
class Stopped extends Error {}

const textOf = (error) => String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 400);

/** What `work` gives; what it throws becomes a Refused. */
async function refused(kind, what, work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Refused || error instanceof Stopped) throw error;
    const full = error instanceof RangeError || /out of memory|allocation failed/i.test(textOf(error));
    throw new Refused(full ? "out-of-memory" : kind, what + textOf(error));
  }
}

let stopping = false;
let looked_ms = performance.now();

/** Nothing, unless the host wants an end; lets messages in, which a busy worker never would. */
async function mustGoOn(now = false) {
  if (now || performance.now() - looked_ms > LOOK_MS) {
    await new Promise((go) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = go;
      port2.postMessage(0);
    });
    looked_ms = performance.now();
  }
  if (stopping) throw new Stopped();
}

// -- the machine ------------------------------------------------------------------------------

/** Nanoseconds that performance.now() moves at least: 5 us to 1 ms, by browser and isolation. */
function clockStep_ns() {
  let least = Infinity;
  for (let i = 0, last = performance.now(); i < 5; ) {
    const now = performance.now();
    if (now > last) {
      least = Math.min(least, now - last);
      last = now;
      i += 1;
    }
  }
  return Math.max(1000, Math.round(least * 1e3) * 1e3); // whole microseconds
}

const memories = new Set();

/** Remember every memory that WebAssembly is given or gives: they never shrink. */
function watchMemory() {
  const note = (made) => {
    for (const value of Object.values(made ?? {})) {
      if (value instanceof WebAssembly.Memory) memories.add(value);
    }
  };
  for (const name of ["instantiate", "instantiateStreaming"]) {
    const real = WebAssembly[name].bind(WebAssembly);
    WebAssembly[name] = async (source, imports) => {
      const made = await real(source, imports);
      Object.values(imports ?? {}).forEach(note);
      note((made.instance ?? made).exports);
      return made;
    };
  }
}

const peak = () => [...memories].reduce((sum, memory) => sum + memory.buffer.byteLength, 0);

// -- the runtimes -----------------------------------------------------------------------------

// Each gives {version, check, load}; check gives where a model would run, in words, and load gives
// {ends, dtype, shape, run}.

async function onnxruntime({ provider, threads }) {
  const gpu = provider === "webgpu";
  // Before the import: the WebAssembly keeps the console's functions as they are then.
  const placement = gpu && watchPlacement();
  const ort = await import(`${assets}onnxruntime-web/dist/ort.${gpu ? "webgpu" : "wasm"}.min.mjs`);
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = `${assets}onnxruntime-web/dist/`;
  ort.env.logLevel = "error";
  const options = { executionProviders: [provider], logSeverityLevel: 3 };
  // The WebAssembly is loaded with the first session, however little there is in it.
  await ort.InferenceSession.create(new Uint8Array(1), options).catch(() => {});
  return {
    version: ort.env.versions.web,
    async check(bytes) {
      if (!gpu) return `wasm, ${count(ort.env.wasm.numThreads, "thread")}`;
      const loud = { ...options, logSeverityLevel: 0 };
      const nodes = await placement(async () => {
        await (await ort.InferenceSession.create(bytes, loud)).release();
      });
      return placed(nodes);
    },
    async load(bytes) {
      const session = await ort.InferenceSession.create(bytes, options);
      const [takes] = session.inputMetadata;
      const [gives] = session.outputNames;
      return {
        ends: [session.inputNames.length, session.outputNames.length],
        dtype: takes.type,
        shape: takes.shape.map((x) => (typeof x === "number" && x > 0 ? x : null)),
        async run(block, shape) {
          const feed = { [takes.name]: new ort.Tensor(takes.type, block, shape) };
          const row = (await session.run(feed, [gives]))[gives];
          return { data: row.data, shape: row.dims, dtype: row.type };
        },
      };
    },
  };
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

/** Finds out where onnxruntime puts nodes, which it tells in its log alone. */
function watchPlacement() {
  let nodes;
  for (const name of ["log", "info", "debug", "warn", "error"]) {
    const real = console[name].bind(console);
    console[name] = (...words) => {
      if (!nodes) return real(...words);
      const found = /odes? ?(?:\(s\))? placed on \[(\w+)\].*nodes: (\d+)/.exec(words.join(" "));
      if (found) nodes[found[1]] = Number(found[2]);
      return undefined;
    };
  }
  return async (work) => {
    nodes = {};
    try {
      await work();
      return nodes;
    } finally {
      nodes = undefined;
    }
  };
}

/** The provider in words; a model of which the GPU gets nothing is refused, not timed. */
function placed(nodes) {
  const gpu = nodes.WebGpuExecutionProvider ?? 0;
  const rest = nodes.CPUExecutionProvider ?? 0;
  if (!gpu && !rest) return "webgpu, placement not told";
  if (!gpu) throw new Refused("model-refused", "WebGPU takes no part of it; use runtime=wasm");
  return `webgpu ${count(gpu, "node")}${rest ? `, wasm ${count(rest, "node")}` : ""}`;
}

async function litert({ provider, threads, versions }) {
  const gpu = provider === "webgpu";
  const lite = await import(`${assets}@litertjs/core/dist/index.js`);
  const jspi = gpu && (await lite.supportsFeature("jspi"));
  const relaxed = await lite.supportsFeature("relaxedSimd");
  const kind = threads > 1 && !gpu ? "_threaded" : jspi ? "_jspi" : relaxed ? "" : "_compat";
  const wasm = `${assets}@litertjs/core/wasm/`;
  // Emscripten looks beside the script that is running, which is this one.
  self.Module = {
    locateFile: (name) => wasm + name,
    mainScriptUrlOrBlob: `${wasm}litert_wasm${kind}_internal.js`,
  };
  const runtime = await lite.loadLiteRt(wasm, { threads: kind === "_threaded", jspi });
  if (gpu && !runtime.getWebGpuDevice()) {
    throw new Refused("runtime-missing", "LiteRT.js found no WebGPU device; use runtime=wasm");
  }
  return {
    version: versions["@litertjs/core"],
    async check() {
      return gpu ? "webgpu" : `wasm, ${count(threads, "thread")}`;
    },
    async load(bytes) {
      const model = await lite.loadAndCompile(bytes, {
        accelerator: provider,
        cpuOptions: { numThreads: threads },
      });
      if (model.options.accelerator !== provider) {
        throw new Refused("model-refused", "WebGPU takes only a part of it; use runtime=wasm");
      }
      const takes = model.getInputDetails(), gives = model.getOutputDetails();
      const parts = gpu && !model.isFullyAccelerated ? ", parts of it on wasm" : "";
      return {
        ends: [takes.length, gives.length],
        dtype: takes[0].dtype,
        shape: [...takes[0].shape].map((x) => (x > 0 ? x : null)),
        parts,
        async run(block, shape) {
          const tensor = new lite.Tensor(block, shape);
          const [row] = await model.run(tensor);
          const data = await row.data();
          const dims = [...row.type.layout.dimensions];
          tensor.delete();
          row.delete();
          return { data, shape: dims, dtype: row.type.dtype };
        },
      };
    },
  };
}

const RUNTIMES = { onnxruntime, litert };
const ARRAYS = { uint8: Uint8Array, int8: Int8Array, float32: Float32Array };

// -- one run ----------------------------------------------------------------------------------

/** The bytes of a file of the job, known to be what the host meant. */
async function fetched(url, { sha256, size }, hash) {
  const bytes = new Uint8Array(size);
  const digest = hash.create();
  for (let at = 0; at < size; ) {
    const part = await fetchedPart(url, at, Math.min(size, at + PART_BYTES) - 1);
    bytes.set(part, at);
    digest.update(part);
    at += part.length;
    await mustGoOn();
  }
  if (hex(digest.digest()) !== sha256) {
    throw new Refused("file-torn", `${url.split("/").pop()} is not what was sent`);
  }
  return bytes;
}

/** One part; a network that is away for a moment is asked again. */
async function fetchedPart(url, from, to) {
  for (let pause_ms = 200; ; pause_ms = Math.min(2 * pause_ms, 5000)) {
    try {
      const answer = await fetch(url, { headers: { Range: `bytes=${from}-${to}` } });
      if (answer.status === 206) {
        const part = new Uint8Array(await answer.arrayBuffer());
        if (part.length === to - from + 1) return part;
      } else if (answer.status < 500) {
        throw new Refused("file-torn", `${url.split("/").pop()}: the host said ${answer.status}`);
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await new Promise((go) => setTimeout(go, pause_ms));
    await mustGoOn(true);
  }
}

const hex = (bytes) => [...bytes].map((x) => x.toString(16).padStart(2, "0")).join("");

class Run {
  constructor(order, hash) {
    this.order = order;
    this.job = order.job;
    this.hash = hash;
    this.rows = 0;
    this.runs = 0;
    this.out = hash.create();
    this.lat = hash.create();
    this.step_ns = clockStep_ns();
  }

  phase(name) {
    postMessage({ phase: name });
  }

  /** Runtime, inputs, model, and the first inference of all. */
  async load() {
    const { job, order } = this;
    this.phase("load");
    const runtime = RUNTIMES[job.runtime];
    if (!runtime) throw new Refused("runtime-missing", `this worker has no runtime ${job.runtime}`);
    // Without isolation there is no memory for threads to share, and the runtimes take one.
    const threads = self.crossOriginIsolated ? job.threads : 1;
    const adapter = await this.adapter();
    const began = performance.now();
    const made = await refused("runtime-missing", `${job.runtime} does not load: `, () =>
      runtime({ provider: order.provider, threads, versions: order.versions }),
    );
    const import_ns = this.ns(began, 1);
    const facts = { ...order.facts, clock_step_ns: String(this.step_ns), ...adapter };
    say("hello", {
      version: 1, worker: "browser", pid: order.worker, runtime: job.runtime,
      runtime_version: made.version, threads, ...order.machine, facts,
    });
    const about = job.inputs;
    const model = await fetched(order.model, job.model, this.hash);
    const raw = await refused("out-of-memory", "", () => fetched(order.inputs, about, this.hash));
    this.inputs = new ARRAYS[about.dtype](raw.buffer);
    this.count = about.shape[0];
    const where = await refused("model-refused", "", () => made.check(model));
    const loading = performance.now();
    this.model = await refused("model-refused", "", () => made.load(model));
    const { shape: takes, dtype, ends } = this.model;
    const provider = where + (this.model.parts ?? "");
    const load_ns = this.ns(loading, 1);
    say("ready", { provider, input_dtype: dtype, input_shape: takes, import_ns, load_ns });
    if (String(ends) !== "1,1") {
      throw new Refused("model-refused", `${ends[0]} inputs and ${ends[1]} outputs, not 1`);
    }
    const fits = takes.length === about.shape.length
      && takes.every((x, axis) => axis === 0 || x === null || x === about.shape[axis]);
    if (!fits || dtype !== about.dtype) {
      const list = (shape) => `[${shape.map((x) => x ?? "None").join(", ")}]`;
      const given = `the inputs are ${about.dtype} ${list([1, ...about.shape.slice(1)])}`;
      throw new Refused("input-mismatch", `it takes ${dtype} ${list(takes)}, ${given}`);
    }
    this.batch = takes[0] ?? 1;
    this.shape = [this.batch, ...about.shape.slice(1)];
    this.fixed = this.block(0);
    const first = await refused("model-refused", "it loads but does not run: ", () =>
      this.infer(this.fixed),
    );
    this.dim = first.rows.length / this.batch;
    this.resume();
    say("first", {
      ns: first.ns, dim: this.dim, batch: this.batch, start: this.rows, runs: this.runs,
    });
  }

  /** Facts about the GPU; a software adapter is none. */
  async adapter() {
    if (this.order.provider !== "webgpu") return {};
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    if (!adapter) {
      const why = self.isSecureContext ? "" : " outside a secure context (https or localhost)";
      throw new Refused("runtime-missing", `this browser offers no WebGPU${why}; use runtime=wasm`);
    }
    const { vendor, architecture, description, isFallbackAdapter } = adapter.info ?? {};
    const software = isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
    postMessage({ software });
    const name = [vendor, architecture, description].filter(Boolean).join(" ") || "unknown";
    return { adapter: name, fallback_adapter: software ? "yes" : "no" };
  }

  /** Nanoseconds per run since `began`, at least a step of the clock for all of them. */
  ns(began, runs) {
    const spent = Math.max((performance.now() - began) * 1e6, this.step_ns);
    return Math.max(1, Math.round(spent / runs));
  }

  /** The inputs of one call; at the end the last row fills a fixed batch up. */
  block(row) {
    const size = this.inputs.length / this.count;
    if (this.batch === 1) return this.inputs.slice(row * size, (row + 1) * size);
    const block = new this.inputs.constructor(this.batch * size);
    for (let n = 0; n < this.batch; n += 1) {
      const from = Math.min(row + n, this.count - 1) * size;
      block.set(this.inputs.subarray(from, from + size), n * size);
    }
    return block;
  }

  /** The float32 rows of one call, and its time. */
  async infer(block) {
    const began = performance.now();
    const { data, shape, dtype } = await this.model.run(block, this.shape);
    const ns = this.ns(began, 1);
    if (shape.length !== 2 || shape[0] !== this.batch || dtype !== "float32") {
      const want = `expected float32 [${this.batch}, dim]`;
      throw new Refused("model-refused", `it gives ${dtype} [${shape.join(", ")}], ${want}`);
    }
    return { rows: data, ns };
  }

  /** How much the host has: what is whole in both files. */
  resume() {
    const { out_bytes, lat_bytes, measured_ns } = this.order.have;
    const times = Math.floor(lat_bytes / 8);
    const rows = Math.min(Math.floor(out_bytes / (4 * this.dim)), times, this.count);
    this.rows = rows === this.count ? rows : rows - (rows % this.batch);
    this.runs = rows === this.count ? times - this.count : 0;
    this.spent_ns = this.runs ? measured_ns : 0;
    this.kept = this.runs;
  }

  /** Hand rows or times over, signed as they go. */
  send(what, head, times, rows = new Float32Array(0)) {
    const lat = new BigInt64Array(times.map(BigInt));
    this.out.update(new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength));
    this.lat.update(new Uint8Array(lat.buffer));
    postMessage({ [what]: { ...head, t_s: (performance.now() - began_ms) / 1000, lat, rows } });
  }

  /** Every row that is not there yet. */
  async embed() {
    this.phase("embed");
    for (let row = this.rows; row < this.count; row += this.batch) {
      await mustGoOn();
      const { rows, ns } = await refused("run-failed", `row ${row}: `, () =>
        this.infer(this.block(row)),
      );
      const n = Math.min(this.batch, this.count - row);
      // A copy: the runtime may write its next answer into the same memory.
      this.send("row", { i: row, n, ns }, Array(n).fill(ns), rows.slice(0, n * this.dim));
      this.rows = row + n;
    }
  }

  /** Whether another run of the fixed input is due. */
  due(runs, spent_ns, least_runs, least_s) {
    const spent_s = spent_ns / 1e9;
    return (runs < least_runs || spent_s < least_s) && spent_s < this.job.plan.max_s;
  }

  /** Warm up, then time one fixed input, in blocks where the clock is too coarse for one run. */
  async measure() {
    const { plan } = this.job;
    if (!plan.min_runs && !plan.min_s) return { measured: 0, block: 0 };
    this.phase("warm");
    let warm = 0;
    const began = performance.now();
    while (this.due(warm, (performance.now() - began) * 1e6, plan.warmup_runs, plan.warmup_s)) {
      await mustGoOn();
      await this.model.run(this.fixed, this.shape);
      warm += 1;
    }
    const one = performance.now();
    if (!warm) await this.model.run(this.fixed, this.shape);
    const each_ns = warm ? this.ns(began, warm) : this.ns(one, 1);
    const block = Math.min(MAX_BLOCK, Math.ceil((STEPS * this.step_ns) / each_ns));
    say("bench", { warmup_runs: warm, runs: this.runs, block, clock_step_ns: this.step_ns });
    this.phase("measure");
    let times = [];
    let sent_ms = performance.now();
    while (this.due(this.runs, this.spent_ns, plan.min_runs, plan.min_s)) {
      await mustGoOn();
      const start = performance.now();
      for (let n = 0; n < block; n += 1) await this.model.run(this.fixed, this.shape);
      const ns = this.ns(start, block);
      for (let n = 0; n < block; n += 1) times.push(ns);
      this.runs += block;
      this.spent_ns += ns * block;
      if (performance.now() - sent_ms > LOOK_MS) {
        this.send("runs", { i: this.runs - times.length, n: times.length }, times);
        times = [];
        sent_ms = performance.now();
      }
    }
    if (times.length) this.send("runs", { i: this.runs - times.length, n: times.length }, times);
    this.phase("finish");
    return { measured: this.runs - this.kept, block };
  }
}

/** The whole run; the last event says how it ended. */
async function work(order) {
  let run;
  try {
    watchMemory();
    if (order.job.version !== 1) {
      throw new Refused("version", `the job is of version ${order.job.version}, not 1`);
    }
    const { sha256 } = await refused("runtime-missing", "", () => import(`${assets}@noble/hashes/sha2.js`));
    run = new Run(order, sha256);
    await mustGoOn(true);
    await run.load();
    await run.embed();
    const { measured, block } = await run.measure();
    say("done", {
      rows: run.rows, dim: run.dim, runs: run.runs, measured, block,
      // Of what this worker handed over; the host has the rest, and signs the whole.
      out_sha256: hex(run.out.digest()), lat_sha256: hex(run.lat.digest()),
      peak_memory_bytes: peak(),
    });
  } catch (error) {
    if (error instanceof Stopped) {
      say("stopped", { rows: run?.rows ?? 0, runs: run?.runs ?? 0 });
    } else {
      say("error", { kind: error.kind ?? "worker-failed", text: textOf(error) });
    }
  }
  postMessage({ ended: true });
}

self.onmessage = ({ data }) => {
  if (data === "stop") stopping = true;
  else work(data);
};
