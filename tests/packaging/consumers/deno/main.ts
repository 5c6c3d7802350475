// usage: main.ts INPUT_FILE
import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

const input = JSON.parse(await Deno.readTextFile(Deno.args[0]));
console.log(JSON.stringify(await exercise(lowbit, input.source, input)));
// Without this, Deno ends its workers while the process ends, and Mesa's software driver sometimes crashes then. Of 80
// programs whose worker only opened its adapter and was then ended, 5 crashed. Programs that call `Deno.exit` did not.
Deno.exit(0);
