// usage: main.ts INPUT_FILE
import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

const input = JSON.parse(await Deno.readTextFile(Deno.args[0]));
console.log(JSON.stringify(await exercise(lowbit, input.source, input)));
// Deno ends its workers while the process ends, and Mesa's software driver sometimes breaks down then: of 80 programs whose
// worker did nothing but open an adapter of it and was ended, 5 crashed. Programs that say that they are done did not.
Deno.exit(0);
