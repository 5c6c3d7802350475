// Tests of the demo page's functions that do not touch the DOM.
import assert from "node:assert/strict";
import { test } from "node:test";
import { breaksAt, seen } from "../../www/page/js/broken.js";
import { nameOf, optionsOf } from "../../www/page/js/choices.js";
import { commonStart, firstDifference } from "../../www/page/js/difference.js";
import { bytes, change, scheme, short } from "../../www/page/js/format.js";
import { filesByName, placeOf } from "../../www/page/js/places.js";
import { criterion, headline } from "../../www/page/js/verdict.js";

test("a generated text is highlighted from where it fails", () => {
  const story = "Mira walked to the old mill by the river. ";
  const loop = (last, total, cycle) => ({ kind: "repetition_loop", detail: `the last ${last} of ${total} tokens repeat a cycle of ${cycle} tokens` });
  const degenerate = (detail) => ({ kind: "degenerate_text", detail });
  const cases = [
    ["a repeated sentence", { ...loop(24, 34, 8), text: `${story}${"The cat sat there. ".repeat(3)}` }, story.length],
    ["cut off in its third round", { ...loop(19, 29, 8), text: `${story}${"The cat sat there. ".repeat(2)}The c` }, story.length],
    // The shortest cycle of characters at the end is "!".
    ["a shorter cycle inside the loop", { ...loop(24, 34, 8), text: `${story}${"She said: no!!!!".repeat(3)}` }, story.length],
    ["one repeated word", { ...loop(40, 40, 1), text: " the".repeat(40) }, 0],
    ["looping tokens that are not whole characters", { ...loop(40, 40, 2), text: "\u{fffd} something else" }, undefined],
    ["an unknown detail text", { kind: "repetition_loop", detail: "it repeats", text: "a a a" }, undefined],
    ["non-finite logits", { kind: "non_finite_logits", detail: "after 3 tokens", text: "The kettle" }, 10],
    ["replacement characters", { ...degenerate("6 of 20 characters are replacement marks, control or private characters"), text: `${story}\u{fffd}\u{fffd}` }, story.length],
    ["newlines and tabs do not count as control characters", { ...degenerate("6 of 20 characters are replacement marks, control or private characters"), text: `one\n\ttwo\u{1}` }, 8],
    ["a run of one character", { ...degenerate("40 of 44 characters are a run of '-'"), text: `oh ${"-".repeat(40)}!` }, 3],
    ["symbols", { ...degenerate("only 1 of 40 visible characters are letters or digits"), text: "){;,=(]" }, 0],
    ["little variety", { ...degenerate("the last 64 tokens have 3 different ones and 1.20 bits of entropy"), text: "a b a c" }, undefined],
    ["empty output", { kind: "empty_output", detail: "8 generated tokens gave no visible text", text: " \n" }, undefined],
  ];
  for (const [name, failure, at] of cases) assert.equal(breaksAt(failure), at, name);
});

test("control characters and long runs of newlines are made visible", () => {
  const cases = [["two\n\nlines", "two\n\nlines"], [`so${"\n".repeat(57)} after`, "so↵×57  after"], ["a\tb\r\n", "a\tb\r\n"], ["\0\x1b", "\u2400\u241b"], ["", ""]];
  for (const [text, wanted] of cases) assert.equal(seen(text), wanted);
});

test("a model's files are picked from the given files", () => {
  const cases = [
    [["config.json", "model.safetensors"], { "config.json": "config.json", "model.safetensors": "model.safetensors" }],
    [["m/config.json", "m/w/a.safetensors", "m/w/notes.txt"], { "config.json": "m/config.json", "w/a.safetensors": "m/w/a.safetensors" }],
    [["m/config.json", "m/onnx/config.json"], { "config.json": "m/config.json" }],
    [["top/readme", "top/m/config.json"], { "config.json": "top/m/config.json" }],
    [["m/tale.gguf", "m/more/other"], { "tale.gguf": "m/tale.gguf" }],
    [["__MACOSX/m/._config.json", "m/config.json"], { "config.json": "m/config.json" }],
    [[], {}],
  ];
  for (const [paths, wanted] of cases) assert.deepEqual(filesByName(paths.map((path) => [path, path])), wanted, paths.join());
  assert.throws(() => filesByName([["a/config.json", 1], ["b/config.json", 2]]), /several: a\/, b\//);
});

test("addresses, hub names and hub page URLs resolve to a source", () => {
  const here = "http://127.0.0.1:8000/";
  const hub = "https://huggingface.co";
  const cases = [
    ["org/model", "org/model", `${hub}/org/model/resolve/main/`, "model"],
    ["  org/model-1.5_b  ", "org/model-1.5_b", `${hub}/org/model-1.5_b/resolve/main/`, "model-1.5_b"],
    [`${hub}/org/model`, "org/model", `${hub}/org/model/resolve/main/`, "model"],
    [`${hub}/org/model/tree/v1.0?x=1#files`, "org/model", `${hub}/org/model/resolve/v1.0/`, "model"],
    ["https://hf.co/org/model/", "org/model", `${hub}/org/model/resolve/main/`, "model"],
    [`${hub}/org/model/tree/refs%2Fpr%2F1`, "org/model", `${hub}/org/model/resolve/refs%2Fpr%2F1/`, "model"],
    [`${hub}/org/model/blob/main/small.gguf`, `${hub}/org/model/resolve/main/small.gguf`, `${hub}/org/model/resolve/main/small.gguf`, "small.gguf"],
    ["https://example.com/models/tale", "https://example.com/models/tale/", "https://example.com/models/tale/", "tale"],
    ["https://example.com/a%20b/", "https://example.com/a%20b/", "https://example.com/a%20b/", "a b"],
    ["https://example.com/x.gguf?key=1", "https://example.com/x.gguf?key=1", "https://example.com/x.gguf?key=1", "x.gguf"],
    ["https://example.com", "https://example.com/", "https://example.com/", "example.com"],
    ["./model", `${here}model/`, `${here}model/`, "model"],
  ];
  for (const [text, source, base, label] of cases) {
    const found = placeOf(text, here);
    assert.deepEqual([found.source, found.base, found.label], [source, base, label], text);
  }
  assert.equal(placeOf(`${hub}/org/model/tree/refs%2Fpr%2F1`, here).revision, "refs/pr/1");
  assert.throws(() => placeOf("https://", here), /https:\/\/: expected an address/);
});

test("the first difference of two continuations is found", () => {
  for (const [a, b, at] of [[[1, 2], [1, 2], null], [[1, 2], [1, 3], 1], [[1, 2], [1], 1], [[], [], null]]) assert.equal(firstDifference(a, b), at);
  for (const [a, b, length] of [["abc", "abd", 2], ["a", "abc", 1], ["\u{1f600}", "\u{1f601}", 0], ["x\u{1f600}", "x\u{1f600}y", 3], ["", "a", 0]]) assert.equal(commonStart(a, b), length, `${a}|${b}`);
});

test("the form's choices become package options and a run name", () => {
  const usual = { method: "rtn", bits: 4, groupSize: 32, symmetric: true, attention: "", mlp: "", ternaryScale: "tensor", samples: 32 };
  assert.deepEqual(optionsOf(usual), { method: "rtn", bits: 4, groupSize: 32, symmetric: true });
  assert.equal(nameOf(usual), "RTN INT4, groups of 32");
  const mixed = { ...usual, method: "gptq", attention: "8", mlp: "keep", symmetric: false };
  assert.deepEqual(optionsOf(mixed, "text"), {
    method: "gptq", bits: 4, groupSize: 32, symmetric: false, calibration: { texts: ["text"], samples: 32 },
    recipe: { rules: [{ modules: ["*.self_attn.*"], bits: 8, group_size: 32 }, { modules: ["*.mlp.*"], keep: true }] },
  });
  assert.equal(nameOf(mixed), "GPTQ INT4, groups of 32, zero points, attention INT8, MLP not quantized");
  assert.deepEqual(optionsOf({ ...usual, attention: "4" }), optionsOf(usual), "the same bits need no rule");
  assert.deepEqual(optionsOf({ ...usual, method: "ternary" }), { method: "ternary", ternaryScale: "tensor" });
});

test("a report's verdict fits in one line", () => {
  const of = (...statuses) => headline({
    accepted: statuses.every((status) => status === "passed"),
    criteria: ["perplexity_increase", "memory_ratio", "speed_ratio"].map((name, at) => ({ name, status: statuses[at] })),
  });
  const cases = [
    [["passed", "passed", "passed"], "passed", /Accepted/], [["failed", "passed", "passed"], "failed", /Too much was lost/],
    [["inconclusive", "passed", "passed"], "inconclusive", /too short/], [["passed", "failed", "inconclusive"], "inconclusive", /not small enough and not fast enough here/],
  ];
  for (const [statuses, status, text] of cases) {
    const found = of(...statuses);
    assert.equal(found.status, status);
    assert.match(found.text, text);
  }
  assert.deepEqual(criterion({ name: "perplexity_increase", limit: 0.02, value: null, status: "failed" }),
    { asks: "Perplexity rises by at most", limit: "2 %", value: "not a number", status: "failed" });
});

test("numbers are formatted for people", () => {
  const cases = [
    [bytes(999), "999 bytes"], [bytes(1_413_880), "1.41 MB"], [bytes(999_700), "1.00 MB"], [bytes(774_656), "775 kB"],
    [change(0.0075), "+0.75 %"], [change(-0.5), "−50.00 %"], [change(null), "–"], [change(7.25), "+725 %"],
    [short(0.00001234), "1.23e-5"], [short(1234.5), "1,235"], [short(0.5), "0.5"], [short(null), "–"], [short(0), "0"],
    [scheme("int4-g32-sym"), "INT4, groups of 32"], [scheme("int8-channel-asym"), "INT8, one scale per row, zero points"], [scheme("ternary-tensor"), "ternary, one scale per tensor"],
  ];
  for (const [found, wanted] of cases) assert.equal(found, wanted);
});
