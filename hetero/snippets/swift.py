"""The app's side in Swift: Foundation only, so that it builds for iOS, macOS and Linux."""

from __future__ import annotations

from hetero.snippets import Spec, fill

FILE = "Embed.swift"
RUN = "swiftc -D SELF_CHECK -parse-as-library Embed.swift -o embed && ./embed canaries"

_FILTERS = {
    "box": "        return x > -0.5 && x <= 0.5 ? 1 : 0",
    "bilinear": "        return max(0, 1 - abs(x))",
    "bicubic": """\
        let t = abs(x)
        if t < 1 { return (1.5 * t - 2.5) * t * t + 1 }
        if t < 2 { return (((t - 5) * t + 8) * t - 4) * -0.5 }
        return 0""",
    "lanczos": """\
        func sinc(_ t: Double) -> Double { t == 0 ? 1 : sin(t * Double.pi) / (t * Double.pi) }
        return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0""",
}

_TEMPLATE = """\
// Embeds pictures with @FILE@ as the gallery's side expects it. Written by `hetero snippet`.
//
// Decode with CGImageSourceCreateImageAtIndex and turn the picture as
// kCGImagePropertyOrientation says; do not use a thumbnail or Vision's scaling: another resize
// gives other pixels. Draw it over white into a CGContext of 8-bit RGBX in its own size and the
// sRGB space, then take R, G, B. `run` gives the model's numbers for its input; for Core ML
// make a CVPixelBuffer (32BGRA) of the SIZE x SIZE pixels, so that Core ML has nothing to resize.

import Foundation

public struct Rgb {
    public var data: [UInt8]
    public var height: Int
    public var width: Int
}

public enum ModelInput {
    case pixels([UInt8])  // SIZE x SIZE x 3
    case planes([Float])  // 3 x SIZE x SIZE, normalised
}

public enum EmbedError: Error { case noDirection(Int, Double) }

public enum Embed {
    public static let SPACE_ID = "@SPACE_ID@"
    public static let SPACE_DIGEST = "@SPACE_DIGEST@"
    public static let PREPROCESS_SHA256 = "@PREPROCESS_SHA256@"
    public static let WEIGHTS_SHA256 = "@WEIGHTS_SHA256@"
    public static let FILE = "@FILE@"
    public static let FILE_SHA256 = "@FILE_SHA256@"
    public static let INPUT = "@INPUT@"  // uint8_nhwc: normalising is inside the file
    public static let DIM = @DIM@
    public static let SIZE = @SIZE@
    public static let RESIZE = "@RESIZE@"
    public static let SUPPORT: Double = @SUPPORT@
    public static let FIT = "@FIT@"
    public static let MEAN: [Float] = [@MEAN@]
    public static let STD: [Float] = [@STD@]
    public static let COSINE_LEAST: Double = @COSINE_LEAST@

    /// The largest centred square, cut before resizing; all of it where FIT is squash.
    public static func crop(_ rgb: Rgb) -> Rgb {
        if FIT != "centre" { return rgb }
        let side = min(rgb.height, rgb.width)
        let top = (rgb.height - side) / 2
        let left = (rgb.width - side) / 2
        var out = [UInt8]()
        out.reserveCapacity(side * side * 3)
        for y in 0..<side {
            let from = ((top + y) * rgb.width + left) * 3
            out += rgb.data[from..<(from + side * 3)]
        }
        return Rgb(data: out, height: side, width: side)
    }

    /// The @RESIZE@ filter.
    static func kernel(_ x: Double) -> Double {
@FILTER@
    }

    /// For each output position: first source position, whole-number weights in 1/2**22.
    static func weights(_ length: Int) -> [(first: Int, ws: [Int])] {
        let scale = Double(length) / Double(SIZE)
        let wide = max(scale, 1)  // the filter grows with the scale: that is antialiasing
        let support = SUPPORT * wide
        return (0..<SIZE).map { at in
            let centre = (Double(at) + 0.5) * scale
            let first = max(Int(centre - support + 0.5), 0)
            let last = min(Int(centre + support + 0.5), length)
            let raw = (first..<last).map { kernel((Double($0) - centre + 0.5) * (1 / wide)) }
            let total = raw.reduce(0, +)
            return (first, raw.map { w in
                let fixed = w / total * 4194304
                return Int(fixed >= 0 ? fixed + 0.5 : fixed - 0.5)
            })
        }
    }

    /// `lines` lines of `length` positions each, resized along them and rounded to whole levels.
    /// A position is `step` bytes from the next, a line `jump` bytes.
    static func along(
        _ data: [UInt8], _ length: Int, _ step: Int, _ lines: Int, _ jump: Int,
        _ count: Int, _ outStep: Int, _ outJump: Int
    ) -> [UInt8] {
        let all = weights(length)
        var out = [UInt8](repeating: 0, count: count)
        for line in 0..<lines {
            for at in 0..<SIZE {
                let (first, ws) = all[at]
                for c in 0..<3 {
                    var sum = 2_097_152
                    let from = line * jump + first * step + c
                    for i in 0..<ws.count { sum += Int(data[from + i * step]) * ws[i] }
                    out[line * outJump + at * outStep + c] = UInt8(min(255, max(0, sum >> 22)))
                }
            }
        }
        return out
    }

    /// SIZE x SIZE x 3: cropped and resized, across first, then down.
    public static func pixels(_ rgb: Rgb) -> [UInt8] {
        let s = crop(rgb)
        let row = SIZE * 3
        let wide = along(s.data, s.width, 3, s.height, s.width * 3, s.height * row, 3, row)
        return along(wide, s.height, row, SIZE, 3, SIZE * row, row, 3)
    }

    /// What the file takes for these pixels: themselves, or normalised, plane by plane.
    public static func modelInput(_ ready: [UInt8]) -> ModelInput {
        if INPUT == "uint8_nhwc" { return .pixels(ready) }
        var out = [Float]()
        out.reserveCapacity(ready.count)
        for c in 0..<3 {
            for i in 0..<(SIZE * SIZE) {
                out.append((Float(ready[i * 3 + c]) / 255 - MEAN[c]) / STD[c])
            }
        }
        return .planes(out)
    }

    /// The vector at length 1.
    public static func unit(_ vector: [Float]) throws -> [Float] {
        let length = vector.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
        guard vector.count == DIM, length.isFinite, length >= 1e-12 else {
            throw EmbedError.noDirection(vector.count, length)
        }
        return vector.map { Float(Double($0) / length) }
    }

    public static func embed(_ rgb: Rgb, _ run: (ModelInput) throws -> [Float]) throws -> [Float] {
        try unit(run(modelInput(pixels(rgb))))
    }

    /// Mistakes found with the canaries; `read` gives a file's bytes, `run` may be left out.
    public static func selfCheck(
        _ read: (String) throws -> Data, _ run: ((ModelInput) throws -> [Float])? = nil
    ) throws -> [String] {
        let text = String(decoding: try read("canaries.txt"), as: UTF8.self)
        let lines = text.split(separator: "\\n").map { $0.split(separator: " ").map(String.init) }
        if lines[0] != [SPACE_DIGEST, PREPROCESS_SHA256, FILE_SHA256] {
            return ["canaries of another space, preprocessing or file: \\(lines[0])"]
        }
        var mistakes = [String]()
        for line in lines.dropFirst() {
            let name = line[0]
            let rgb = Rgb(
                data: [UInt8](try read("\\(name).rgb.bin")),
                height: Int(line[1])!, width: Int(line[2])!)
            let want = [UInt8](try read("\\(name).pixels.bin"))
            let off = zip(pixels(rgb), want).map { abs(Int($0) - Int($1)) }.max() ?? 255
            if off > 0 { mistakes.append("\\(name): pixels are up to \\(off) levels off") }
            guard let run = run else { continue }
            let right = [UInt8](try read("\\(name).vector.bin")).withUnsafeBytes {
                Array($0.bindMemory(to: Float.self))
            }
            let made = try embed(rgb, run)
            let cosine = zip(made, right).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
            if !(cosine >= COSINE_LEAST) { mistakes.append("\\(name): cosine \\(cosine)") }
        }
        return mistakes
    }
}

#if SELF_CHECK
@main
struct Main {
    static func main() throws {
        let folder = URL(fileURLWithPath: CommandLine.arguments[1])
        let found = try Embed.selfCheck { try Data(contentsOf: folder.appendingPathComponent($0)) }
        let fine = "canaries agree in pixels, space \\(Embed.SPACE_ID)"
        print(found.isEmpty ? fine : found.joined(separator: "\\n"))
        exit(found.isEmpty ? 0 : 1)
    }
}
#endif
"""


def render(spec: Spec) -> str:
    """The source of ``Embed.swift``."""
    return fill(_TEMPLATE, spec.constants() | {"FILTER": _FILTERS[spec.preprocess.resize]})
