// Tables scroll inside themselves on narrow windows, so that the page doesn't.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table")) {
    if (table.closest(".table-wrapper")) continue;
    const wrapper = document.createElement("div");
    wrapper.className = "table-wrapper";
    table.replaceWith(wrapper);
    wrapper.append(table);
  }
});
