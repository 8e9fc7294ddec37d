// Light or dark: what the system says, unless the switch says otherwise. Runs before the page is first painted.

const KEPT = "darkroom.theme";
const root = document.documentElement;

function apply(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
}

const kept = localStorage.getItem(KEPT) ?? "";
apply(kept);

addEventListener("DOMContentLoaded", () => {
  const choice = document.getElementById("theme");
  choice.value = kept;
  choice.addEventListener("change", () => {
    apply(choice.value);
    if (choice.value) localStorage.setItem(KEPT, choice.value);
    else localStorage.removeItem(KEPT);
  });
});
