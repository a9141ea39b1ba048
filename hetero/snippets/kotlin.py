"""The app's side in Kotlin: the standard library only, so that it runs on Android and the JVM."""

from __future__ import annotations

import re

from hetero.snippets import Spec, fill

FILE = "Embed.kt"
RUN = "kotlinc Embed.kt -include-runtime -d embed.jar && java -jar embed.jar canaries"

_FILTERS = {
    "box": "        return if (x > -0.5 && x <= 0.5) 1.0 else 0.0",
    "bilinear": "        return maxOf(0.0, 1.0 - abs(x))",
    "bicubic": """\
        val t = abs(x)
        if (t < 1.0) return (1.5 * t - 2.5) * t * t + 1.0
        if (t < 2.0) return (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5
        return 0.0""",
    "lanczos": """\
        fun sinc(t: Double) = if (t == 0.0) 1.0 else sin(t * PI) / (t * PI)
        return if (x >= -3.0 && x < 3.0) sinc(x) * sinc(x / 3.0) else 0.0""",
}

_TEMPLATE = """\
// Embeds pictures with @FILE@ as the gallery's side expects it. Written by `hetero snippet`.
//
// Decode on Android with ImageDecoder, which turns the picture as EXIF says
// (BitmapFactory does not): setAllocator(ALLOCATOR_SOFTWARE), setTargetColorSpace(sRGB), never
// setTargetSize: another resize gives other pixels. Draw transparent pictures over white, then
// take R, G, B of each pixel. `run` gives the model's numbers for its
// input, for example with LiteRT:
//   val run = { x: ByteBuffer ->
//       val y = Array(1) { FloatArray(Embed.DIM) }; net.run(x, y); y[0] }

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.sin
import kotlin.math.sqrt

class Rgb(val data: ByteArray, val height: Int, val width: Int)

object Embed {
    const val SPACE_ID = "@SPACE_ID@"
    const val SPACE_DIGEST = "@SPACE_DIGEST@"
    const val PREPROCESS_SHA256 = "@PREPROCESS_SHA256@"
    const val WEIGHTS_SHA256 = "@WEIGHTS_SHA256@"
    const val FILE = "@FILE@"
    const val FILE_SHA256 = "@FILE_SHA256@"
    const val INPUT = "@INPUT@" // uint8_nhwc: normalising is inside the file
    const val DIM = @DIM@
    const val SIZE = @SIZE@
    const val RESIZE = "@RESIZE@"
    const val SUPPORT = @SUPPORT@
    const val FIT = "@FIT@"
    val MEAN = floatArrayOf(@MEAN_F@)
    val STD = floatArrayOf(@STD_F@)
    const val COSINE_LEAST = @COSINE_LEAST@

    // The largest centred square, cut before resizing; all of it where FIT is squash.
    fun crop(rgb: Rgb): Rgb {
        if (FIT != "centre") return rgb
        val side = minOf(rgb.height, rgb.width)
        val top = (rgb.height - side) / 2
        val left = (rgb.width - side) / 2
        val out = ByteArray(side * side * 3)
        for (y in 0 until side) {
            val from = ((top + y) * rgb.width + left) * 3
            System.arraycopy(rgb.data, from, out, y * side * 3, side * 3)
        }
        return Rgb(out, side, side)
    }

    // The @RESIZE@ filter.
    private fun kernel(x: Double): Double {
@FILTER@
    }

    private class Weights(val first: Int, val ws: IntArray)

    // For each output position: first source position, whole-number weights in 1/2**22.
    private fun weights(length: Int): List<Weights> {
        val scale = length.toDouble() / SIZE
        val wide = maxOf(scale, 1.0) // the filter grows with the scale: that is antialiasing
        val support = SUPPORT * wide
        return (0 until SIZE).map { at ->
            val centre = (at + 0.5) * scale
            val first = maxOf((centre - support + 0.5).toInt(), 0)
            val last = minOf((centre + support + 0.5).toInt(), length)
            val raw = (first until last).map { kernel((it - centre + 0.5) * (1.0 / wide)) }
            var total = 0.0
            for (w in raw) total += w
            val fixed = raw.map { it / total * 4194304.0 }
            val whole = fixed.map { if (it >= 0) (it + 0.5).toInt() else (it - 0.5).toInt() }
            Weights(first, whole.toIntArray())
        }
    }

    // `lines` lines of `length` positions each, resized along them and rounded to whole levels.
    // A position is `step` bytes from the next, a line `jump` bytes.
    private fun along(
        data: ByteArray, length: Int, step: Int, lines: Int, jump: Int,
        out: ByteArray, outStep: Int, outJump: Int,
    ): ByteArray {
        val all = weights(length)
        for (line in 0 until lines) for (at in 0 until SIZE) for (c in 0 until 3) {
            var sum = 2097152L
            val from = line * jump + all[at].first * step + c
            val ws = all[at].ws
            for (i in ws.indices) sum += (data[from + i * step].toInt() and 255).toLong() * ws[i]
            val level = (sum shr 22).coerceIn(0L, 255L).toInt()
            out[line * outJump + at * outStep + c] = level.toByte()
        }
        return out
    }

    // SIZE x SIZE x 3: cropped and resized, across first, then down.
    fun pixels(rgb: Rgb): ByteArray {
        val square = crop(rgb)
        val row = SIZE * 3
        val wide = along(
            square.data, square.width, 3, square.height, square.width * 3,
            ByteArray(square.height * row), 3, row,
        )
        return along(wide, square.height, row, SIZE, 3, ByteArray(SIZE * row), row, 3)
    }

    // What the file takes for these pixels: themselves, or normalised, plane by plane.
    fun modelInput(ready: ByteArray): ByteBuffer {
        if (INPUT == "uint8_nhwc") {
            val same = ByteBuffer.allocateDirect(ready.size).order(ByteOrder.nativeOrder())
            same.put(ready).rewind()
            return same
        }
        val out = ByteBuffer.allocateDirect(12 * SIZE * SIZE).order(ByteOrder.nativeOrder())
        for (c in 0 until 3) for (i in 0 until SIZE * SIZE) {
            out.putFloat(((ready[i * 3 + c].toInt() and 255).toFloat() / 255f - MEAN[c]) / STD[c])
        }
        out.rewind()
        return out
    }

    // The vector at length 1.
    fun unit(vector: FloatArray): FloatArray {
        val length = sqrt(vector.sumOf { it.toDouble() * it })
        require(vector.size == DIM && length.isFinite() && length >= 1e-12) {
            "${vector.size} numbers of length $length, expected $DIM of a length above 0"
        }
        return FloatArray(DIM) { (vector[it] / length).toFloat() }
    }

    fun embed(rgb: Rgb, run: (ByteBuffer) -> FloatArray): FloatArray =
        unit(run(modelInput(pixels(rgb))))

    // Mistakes found with the canaries; `read` gives a file's bytes, `run` may be left out.
    fun selfCheck(
        read: (String) -> ByteArray,
        run: ((ByteBuffer) -> FloatArray)? = null,
    ): List<String> {
        val lines = String(read("canaries.txt")).trim().lines().map { it.split(" ") }
        val mine = listOf(SPACE_DIGEST, PREPROCESS_SHA256, FILE_SHA256)
        if (lines[0] != mine) {
            return listOf("canaries of another space, preprocessing or file: ${lines[0]}")
        }
        val mistakes = mutableListOf<String>()
        for ((name, height, width) in lines.drop(1)) {
            val rgb = Rgb(read("$name.rgb.bin"), height.toInt(), width.toInt())
            val want = read("$name.pixels.bin")
            val got = pixels(rgb)
            val off = got.indices.maxOf {
                abs((got[it].toInt() and 255) - (want[it].toInt() and 255))
            }
            if (off > 0) mistakes += "$name: pixels are up to $off levels off"
            if (run == null) continue
            val right = ByteBuffer.wrap(read("$name.vector.bin")).order(ByteOrder.LITTLE_ENDIAN)
            val cosine = embed(rgb, run).sumOf { it.toDouble() * right.getFloat() }
            if (!(cosine >= COSINE_LEAST)) mistakes += "$name: cosine $cosine"
        }
        return mistakes
    }
}

fun main(arguments: Array<String>) {
    val found = Embed.selfCheck({ File(arguments[0], it).readBytes() })
    val fine = "canaries agree in pixels, space ${Embed.SPACE_ID}"
    println(found.joinToString("\\n").ifEmpty { fine })
    if (found.isNotEmpty()) kotlin.system.exitProcess(1)
}
"""


def render(spec: Spec) -> str:
    """The source of ``Embed.kt``."""
    values = spec.constants()
    values |= {f"{k}_F": re.sub(r"(\d)(?=,|$)", r"\1f", values[k]) for k in ("MEAN", "STD")}
    return fill(_TEMPLATE, values | {"FILTER": _FILTERS[spec.preprocess.resize]})
