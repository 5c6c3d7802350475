import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

addEventListener("message", async ({ data: { source, input } }) => {
  try {
    postMessage({ found: await exercise(lowbit, source, input) });
  } catch (error) {
    postMessage({ error: `${error?.stack ?? error}` });
  }
});
