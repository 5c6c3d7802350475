// usage: main.mjs INPUT_FILE
import { readFileSync } from "node:fs";
import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

const input = JSON.parse(readFileSync(process.argv[2], "utf8"));
console.log(JSON.stringify(await exercise(lowbit, input.source, input)));
