(() => {
  const box = document.getElementById("filter");
  const matches = document.getElementById("matches");
  const rows = [...document.querySelectorAll("article table tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const show = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, number) => {
      row.hidden = !words.every((word) => texts[number].includes(word));
      shown += !row.hidden;
    });
    matches.textContent = `${shown} of ${rows.length}`;
  };
  box.addEventListener("input", show);
  show();
})();
