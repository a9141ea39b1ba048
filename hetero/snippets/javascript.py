"""The app's side in JavaScript: no dependency; for browsers, React Native and node."""

from __future__ import annotations

from hetero.snippets import Spec, fill

FILE = "embed.mjs"
RUN = "node embed.mjs"

_FILTERS = {
    "box": "  return x > -0.5 && x <= 0.5 ? 1 : 0;",
    "bilinear": "  return Math.max(0, 1 - Math.abs(x));",
    "bicubic": """\
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;""",
    "lanczos": """\
  const sinc = (t) => (t === 0 ? 1 : Math.sin(t * Math.PI) / (t * Math.PI));
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;""",
}

_TEMPLATE = """\
// Embeds pictures with @FILE@ as the gallery's side expects it. Written by `hetero snippet`.
//
// `node embed.mjs` checks the pixels against the canaries beside it. In the app call
// selfCheck(read, run) once; `run` takes the model's input and gives its numbers, for example with
// onnxruntime-web:
//   const run = async (x) => (await session.run({ pixels:
//     new ort.Tensor("uint8", x, [1, SIZE, SIZE, 3]) })).embedding.data;

export const SPACE_ID = "@SPACE_ID@";
export const SPACE_DIGEST = "@SPACE_DIGEST@";
export const PREPROCESS_SHA256 = "@PREPROCESS_SHA256@";
export const WEIGHTS_SHA256 = "@WEIGHTS_SHA256@";
export const FILE = "@FILE@";
export const FILE_SHA256 = "@FILE_SHA256@";
export const INPUT = "@INPUT@"; // uint8_nhwc: normalising is inside the file
export const DIM = @DIM@;
export const SIZE = @SIZE@;
export const RESIZE = "@RESIZE@";
export const SUPPORT = @SUPPORT@;
export const FIT = "@FIT@";
export const MEAN = [@MEAN@];
export const STD = [@STD@];
export const COSINE_LEAST = @COSINE_LEAST@;

// In a browser: {data, height, width} of a Blob, turned as EXIF says, over white, without colour
// profile. Let nothing else resize the picture: canvas filters differ between browsers.
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    data[j++] = rgba[i];
    data[j++] = rgba[i + 1];
    data[j++] = rgba[i + 2];
  }
  return { data, height, width };
}

// The largest centred square, cut before resizing; all of it where FIT is squash.
export function crop(rgb) {
  if (FIT !== "centre") return rgb;
  const { data, height, width } = rgb;
  const side = Math.min(height, width);
  const top = (height - side) >> 1;
  const left = (width - side) >> 1;
  const out = new Uint8Array(side * side * 3);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * width + left) * 3;
    out.set(data.subarray(from, from + side * 3), y * side * 3);
  }
  return { data: out, height: side, width: side };
}

// The @RESIZE@ filter.
function kernel(x) {
@FILTER@
}

// For each output position: first source position, whole-number weights in 1/2**22.
export function weights(length) {
  const scale = length / SIZE;
  const wide = Math.max(scale, 1); // the filter grows with the scale: that is antialiasing
  const support = SUPPORT * wide;
  const out = [];
  for (let at = 0; at < SIZE; at++) {
    const centre = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), length);
    const ws = [];
    let total = 0;
    for (let x = first; x < last; x++) {
      ws.push(kernel((x - centre + 0.5) * (1 / wide)));
      total += ws[ws.length - 1];
    }
    for (let i = 0; i < ws.length; i++) {
      const w = (ws[i] / total) * 4194304;
      ws[i] = Math.trunc(w >= 0 ? w + 0.5 : w - 0.5);
    }
    out.push({ first, ws });
  }
  return out;
}

// `lines` lines of `length` positions each, resized along them and rounded to whole levels.
// A position is `step` bytes from the next, a line `jump` bytes.
function along(data, length, step, lines, jump, out, outStep, outJump) {
  const all = weights(length);
  for (let line = 0; line < lines; line++) {
    for (let at = 0; at < SIZE; at++) {
      const { first, ws } = all[at];
      for (let c = 0; c < 3; c++) {
        let sum = 2097152;
        const from = line * jump + first * step + c;
        for (let i = 0; i < ws.length; i++) sum += data[from + i * step] * ws[i];
        const level = Math.floor(sum / 4194304);
        out[line * outJump + at * outStep + c] = Math.min(255, Math.max(0, level));
      }
    }
  }
  return out;
}

// Uint8Array of SIZE x SIZE x 3: cropped and resized, across first, then down.
export function pixels(rgb) {
  const { data, height, width } = crop(rgb);
  const row = SIZE * 3;
  const wide = along(data, width, 3, height, width * 3, new Uint8Array(height * row), 3, row);
  return along(wide, height, row, SIZE, 3, new Uint8Array(SIZE * row), row, 3);
}

// What the file takes for these pixels: themselves, or normalised, plane by plane.
export function modelInput(ready) {
  if (INPUT === "uint8_nhwc") return ready;
  const f = Math.fround;
  const out = new Float32Array(3 * SIZE * SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) {
    for (let c = 0; c < 3; c++) {
      const x = f(f(f(ready[i * 3 + c]) / f(255)) - f(MEAN[c]));
      out[c * SIZE * SIZE + i] = f(x / f(STD[c]));
    }
  }
  return out;
}

// The vector at length 1.
export function unit(vector) {
  let sum = 0;
  for (const x of vector) sum += x * x;
  const length = Math.sqrt(sum);
  if (vector.length !== DIM || !Number.isFinite(length) || length < 1e-12) {
    throw new Error(`${vector.length} numbers of length ${length}, expected ${DIM} above 0`);
  }
  return Float32Array.from(vector, (x) => x / length);
}

export async function embed(rgb, run) {
  return unit(await run(modelInput(pixels(rgb))));
}

// Mistakes found with the canaries; `read` gives a file's bytes, `run` may be left out.
export async function selfCheck(read, run) {
  const index = JSON.parse(new TextDecoder().decode(await read("canaries.json")));
  const mine = [SPACE_DIGEST, PREPROCESS_SHA256, FILE_SHA256].join(" ");
  const theirs = [index.space_digest, index.preprocess_sha256, index.file_sha256].join(" ");
  if (mine !== theirs) return [`canaries of another space, preprocessing or file: ${theirs}`];
  const mistakes = [];
  for (const c of index.canaries) {
    const [height, width] = c.rgb.shape;
    const rgb = { data: new Uint8Array(await read(c.rgb.file)), height, width };
    const want = await read(c.pixels.file);
    const got = pixels(rgb);
    let off = got.length === want.length ? 0 : 255;
    for (let i = 0; i < got.length; i++) off = Math.max(off, Math.abs(got[i] - want[i]));
    if (off) mistakes.push(`${c.picture}: pixels are up to ${off} levels off`);
    if (!run) continue;
    const raw = new Uint8Array(await read(c.vector.file));
    const vector = new Float32Array(raw.buffer);
    const made = await embed(rgb, run);
    const cosine = made.reduce((sum, x, i) => sum + x * vector[i], 0);
    if (!(cosine >= COSINE_LEAST)) mistakes.push(`${c.picture}: cosine ${cosine}`);
  }
  return mistakes;
}

if (typeof process !== "undefined" && process.argv?.[1]?.endsWith("embed.mjs")) {
  const { readFileSync } = await import("node:fs");
  const at = (name) => readFileSync(new URL(`./canaries/${name}`, import.meta.url));
  const found = await selfCheck(at);
  console.log(found.join("\\n") || `canaries agree in pixels, space ${SPACE_ID}`);
  process.exit(found.length ? 1 : 0);
}
"""


def render(spec: Spec) -> str:
    """The source of ``embed.mjs``."""
    return fill(_TEMPLATE, spec.constants() | {"FILTER": _FILTERS[spec.preprocess.resize]})
