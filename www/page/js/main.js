// The page: each part sets itself up with the store that all share.
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
// Both at once: what runs here can be said before the model has arrived.
showDevice(store);
setUpOpening(store);
