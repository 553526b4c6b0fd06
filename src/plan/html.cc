// Html: elements and the page around them.
// SPDX-License-Identifier: Apache-2.0
#include "plan/html.h"

namespace hadal::plan {
namespace {

constexpr std::string_view kStyle = R"css(
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:4px 10px;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.frame{margin:.75rem 0;overflow-x:auto;border:1px solid var(--grid);border-radius:6px;padding:8px;background:var(--bg)}
figure{margin:1rem 0}figure .frame{margin:0}figcaption,p.small{color:var(--dim);font-size:.9rem}
.frame svg.p{max-width:none}
@media (max-width:600px){body{font-size:15px}th,td{padding:3px 6px}main{padding:10px}}
@media print{.frame{overflow:visible;border:0}.frame svg.p{max-width:100%}h2{break-after:avoid}}
)css";

}  // namespace

void Html::heading(std::string_view text) { body_ += "<h2>" + escape_xml(text) + "</h2>\n"; }

void Html::paragraph(std::string_view text) { body_ += "<p>" + escape_xml(text) + "</p>\n"; }

void Html::list(const std::vector<std::string>& items) {
  body_ += "<ul>\n";
  for (const std::string& item : items) body_ += "<li>" + escape_xml(item) + "</li>\n";
  body_ += "</ul>\n";
}

void Html::table(const std::vector<std::vector<std::string>>& rows, size_t numbers_from) {
  body_ += "<div class=\"frame\"><table>\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string tag = i == 0 ? "th" : "td";
    body_ += "<tr>";
    for (size_t j = 0; j < rows[i].size(); ++j)
      body_ += "<" + tag + (j >= numbers_from ? " class=\"n\"" : "") + ">" +
               escape_xml(rows[i][j]) + "</" + tag + ">";
    body_ += "</tr>\n";
  }
  body_ += "</table></div>\n";
}

void Html::picture(const Svg& svg, std::string_view caption) {
  body_ += "<figure><div class=\"frame\">" + svg.inline_html(caption) + "</div><figcaption>" +
           escape_xml(caption) + "</figcaption></figure>\n";
}

std::string Html::page() const {
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
         "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
         escape_xml(title_) + "</title>\n<style>" + svg_style() + std::string(kStyle) +
         "</style>\n</head>\n<body>\n<main>\n<h1>" + escape_xml(title_) + "</h1>\n" + body_ +
         "</main>\n</body>\n</html>\n";
}

}  // namespace hadal::plan
