// The page's policy rejects strings as markup or code. Workers start from URLs; only this site's own URLs are allowed.
if (globalThis.trustedTypes?.createPolicy !== undefined) {
  globalThis.trustedTypes.createPolicy("default", {
    createScriptURL: (address) => (new URL(address, location.href).origin === location.origin ? address : undefined),
  });
}
