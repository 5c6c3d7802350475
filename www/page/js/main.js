// The page: each part sets itself up with the store that all share.
import "./trusted.js";
import { showDevice } from "./device.js";
import { guardReloads } from "./jobs.js";
import { setUpOpening } from "./open.js";
import { setUpQuantizing } from "./quantize.js";
import { Store } from "./store.js";
import { setUpTalking } from "./talk.js";

const store = new Store();
guardReloads(store);
setUpQuantizing(store);
setUpTalking(store);
await setUpOpening(store);
showDevice(store);
