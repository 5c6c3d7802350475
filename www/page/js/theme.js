// Applies the chosen theme before the first paint. Not a module: modules run too late for that.
(() => {
  const KEY = "lowbit-theme";
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const NAMES = { auto: "automatic", light: "light", dark: "dark" };
  let theme = "auto";
  try {
    theme = localStorage.getItem(KEY) ?? "auto";
  } catch {
    // Some browsers deny storage in private windows.
  }
  if (!(theme in NEXT)) theme = "auto";

  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme-toggle");
    if (button) button.textContent = `Theme: ${NAMES[theme]}`;
  };
  apply();
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme-toggle").addEventListener("click", () => {
      theme = NEXT[theme];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // Then the choice lasts for this visit only.
      }
      apply();
    });
  });
})();
