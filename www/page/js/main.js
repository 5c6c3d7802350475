// The page's entry point: sets up each part with the shared store.
import "./trusted.js";
import { showDevice } from "./device.js";
import { setUpJudging } from "./judge.js";
import { guardReloads } from "./jobs.js";
import { setUpOpening } from "./open.js";
import { setUpQuantizing } from "./quantize.js";
import { setUpRuns } from "./runs.js";
import { Store } from "./store.js";
import { setUpTaking } from "./take.js";
import { setUpTalking } from "./talk.js";

const store = new Store();
guardReloads(store);
setUpQuantizing(store);
setUpTalking(store);
setUpJudging(store);
setUpRuns(store);
setUpTaking(store);
// In parallel, so the device line does not wait for the model.
showDevice(store);
setUpOpening(store);
