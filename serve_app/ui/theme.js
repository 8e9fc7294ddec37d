// Light or dark: what the system says, unless the switch says otherwise. Runs before the page is first painted.

const KEPT = "darkroom.theme";
const root = document.documentElement;

function wear(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
}

const kept = localStorage.getItem(KEPT) ?? "";
wear(kept);

addEventListener("DOMContentLoaded", () => {
  const choice = document.getElementById("theme");
  choice.value = kept;
  choice.addEventListener("change", () => {
    wear(choice.value);
    if (choice.value) localStorage.setItem(KEPT, choice.value);
    else localStorage.removeItem(KEPT);
  });
});
