// The page's policy refuses every string as markup or code. Workers start from addresses; only this site's own are let through.
if (globalThis.trustedTypes?.createPolicy !== undefined) {
  globalThis.trustedTypes.createPolicy("default", {
    createScriptURL: (address) => (new URL(address, location.href).origin === location.origin ? address : undefined),
  });
}
