// usage: main.ts INPUT_FILE
import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

const input = JSON.parse(await Deno.readTextFile(Deno.args[0]));
console.log(JSON.stringify(await exercise(lowbit, input.source, input)));
