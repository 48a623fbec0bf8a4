"""The countries of ISO 3166-1: their two codes, their continent, and the names that people write, as plain text.

Codes and names are those of the Debian project's iso-codes (``pycountry``), as a test holds; some names in common use
were added. Names are without capitals, accents and signs, in the form of ``hansa.market.places.folded``.
"""

from typing import Final

COUNTRIES: Final = """
ad and europe: andorra
ae are asia: united arab emirates, uae, emirates
af afg asia: afghanistan
ag atg north america: antigua and barbuda
ai aia north america: anguilla
al alb europe: albania
am arm asia: armenia
ao ago africa: angola
aq ata antarctica: antarctica
ar arg south america: argentina
as asm oceania: american samoa
at aut europe: austria
au aus oceania: australia
aw abw north america: aruba
ax ala europe: aland islands
az aze asia: azerbaijan
ba bih europe: bosnia and herzegovina
bb brb north america: barbados
bd bgd asia: bangladesh
be bel europe: belgium
bf bfa africa: burkina faso
bg bgr europe: bulgaria
bh bhr asia: bahrain
bi bdi africa: burundi
bj ben africa: benin
bl blm north america: saint barthelemy
bm bmu north america: bermuda
bn brn asia: brunei darussalam, brunei
bo bol south america: bolivia
bq bes north america: bonaire
br bra south america: brazil
bs bhs north america: bahamas
bt btn asia: bhutan
bv bvt antarctica: bouvet island
bw bwa africa: botswana
by blr europe: belarus
bz blz north america: belize
ca can north america: canada
cc cck oceania: cocos islands
cd cod africa: dr congo, drc, democratic republic of the congo
cf caf africa: central african republic
cg cog africa: congo
ch che europe: switzerland
ci civ africa: cote d ivoire, ivory coast
ck cok oceania: cook islands
cl chl south america: chile
cm cmr africa: cameroon
cn chn asia: china, prc, mainland china
co col south america: colombia
cr cri north america: costa rica
cu cub north america: cuba
cv cpv africa: cabo verde, cape verde
cw cuw north america: curacao
cx cxr oceania: christmas island
cy cyp asia: cyprus
cz cze europe: czechia, czech republic
de deu europe: germany
dj dji africa: djibouti
dk dnk europe: denmark
dm dma north america: dominica
do dom north america: dominican republic
dz dza africa: algeria
ec ecu south america: ecuador
ee est europe: estonia
eg egy africa: egypt
eh esh africa: western sahara
er eri africa: eritrea
es esp europe: spain
et eth africa: ethiopia
fi fin europe: finland
fj fji oceania: fiji
fk flk south america: falkland islands
fm fsm oceania: micronesia
fo fro europe: faroe islands
fr fra europe: france
ga gab africa: gabon
gb gbr europe: united kingdom, uk, great britain, britain, england, scotland, wales, northern ireland
gd grd north america: grenada
ge geo asia: georgia
gf guf south america: french guiana
gg ggy europe: guernsey
gh gha africa: ghana
gi gib europe: gibraltar
gl grl north america: greenland
gm gmb africa: gambia
gn gin africa: guinea
gp glp north america: guadeloupe
gq gnq africa: equatorial guinea
gr grc europe: greece
gs sgs antarctica: south georgia and the south sandwich islands
gt gtm north america: guatemala
gu gum oceania: guam
gw gnb africa: guinea bissau
gy guy south america: guyana
hk hkg asia: hong kong, hong kong sar
hm hmd antarctica: heard island and mcdonald islands
hn hnd north america: honduras
hr hrv europe: croatia
ht hti north america: haiti
hu hun europe: hungary
id idn asia: indonesia
ie irl europe: ireland
il isr asia: israel
im imn europe: isle of man
in ind asia: india
io iot africa: british indian ocean territory
iq irq asia: iraq
ir irn asia: iran
is isl europe: iceland
it ita europe: italy
je jey europe: jersey
jm jam north america: jamaica
jo jor asia: jordan
jp jpn asia: japan
ke ken africa: kenya
kg kgz asia: kyrgyzstan
kh khm asia: cambodia
ki kir oceania: kiribati
km com africa: comoros
kn kna north america: saint kitts and nevis
kp prk asia: north korea
kr kor asia: south korea, korea, republic of korea
kw kwt asia: kuwait
ky cym north america: cayman islands
kz kaz asia: kazakhstan
la lao asia: laos, lao people s democratic republic
lb lbn asia: lebanon
lc lca north america: saint lucia
li lie europe: liechtenstein
lk lka asia: sri lanka
lr lbr africa: liberia
ls lso africa: lesotho
lt ltu europe: lithuania
lu lux europe: luxembourg
lv lva europe: latvia
ly lby africa: libya
ma mar africa: morocco
mc mco europe: monaco
md mda europe: moldova
me mne europe: montenegro
mf maf north america: saint martin
mg mdg africa: madagascar
mh mhl oceania: marshall islands
mk mkd europe: north macedonia, macedonia
ml mli africa: mali
mm mmr asia: myanmar, burma
mn mng asia: mongolia
mo mac asia: macao, macau
mp mnp oceania: northern mariana islands
mq mtq north america: martinique
mr mrt africa: mauritania
ms msr north america: montserrat
mt mlt europe: malta
mu mus africa: mauritius
mv mdv asia: maldives
mw mwi africa: malawi
mx mex north america: mexico
my mys asia: malaysia
mz moz africa: mozambique
na nam africa: namibia
nc ncl oceania: new caledonia
ne ner africa: niger
nf nfk oceania: norfolk island
ng nga africa: nigeria
ni nic north america: nicaragua
nl nld europe: netherlands, holland, the netherlands
no nor europe: norway
np npl asia: nepal
nr nru oceania: nauru
nu niu oceania: niue
nz nzl oceania: new zealand
om omn asia: oman
pa pan north america: panama
pe per south america: peru
pf pyf oceania: french polynesia
pg png oceania: papua new guinea
ph phl asia: philippines
pk pak asia: pakistan
pl pol europe: poland
pm spm north america: saint pierre and miquelon
pn pcn oceania: pitcairn
pr pri north america: puerto rico
ps pse asia: palestine
pt prt europe: portugal
pw plw oceania: palau
py pry south america: paraguay
qa qat asia: qatar
re reu africa: reunion
ro rou europe: romania
rs srb europe: serbia
ru rus europe: russian federation, russia
rw rwa africa: rwanda
sa sau asia: saudi arabia, ksa
sb slb oceania: solomon islands
sc syc africa: seychelles
sd sdn africa: sudan
se swe europe: sweden
sg sgp asia: singapore
sh shn africa: saint helena
si svn europe: slovenia
sj sjm europe: svalbard and jan mayen
sk svk europe: slovakia
sl sle africa: sierra leone
sm smr europe: san marino
sn sen africa: senegal
so som africa: somalia
sr sur south america: suriname
ss ssd africa: south sudan
st stp africa: sao tome and principe
sv slv north america: el salvador
sx sxm north america: sint maarten
sy syr asia: syria, syrian arab republic
sz swz africa: eswatini, swaziland
tc tca north america: turks and caicos islands
td tcd africa: chad
tf atf antarctica: french southern territories
tg tgo africa: togo
th tha asia: thailand
tj tjk asia: tajikistan
tk tkl oceania: tokelau
tl tls asia: timor leste, east timor
tm tkm asia: turkmenistan
tn tun africa: tunisia
to ton oceania: tonga
tr tur asia: turkiye, turkey
tt tto north america: trinidad and tobago
tv tuv oceania: tuvalu
tw twn asia: taiwan
tz tza africa: tanzania
ua ukr europe: ukraine
ug uga africa: uganda
um umi oceania: united states minor outlying islands
us usa north america: united states, usa, united states of america, u s, u s a
uy ury south america: uruguay
uz uzb asia: uzbekistan
va vat europe: vatican, vatican city
vc vct north america: saint vincent and the grenadines
ve ven south america: venezuela
vg vgb north america: british virgin islands
vi vir north america: us virgin islands
vn vnm asia: vietnam, viet nam
vu vut oceania: vanuatu
wf wlf oceania: wallis and futuna
ws wsm oceania: samoa
ye yem asia: yemen
yt myt africa: mayotte
za zaf africa: south africa
zm zmb africa: zambia
zw zwe africa: zimbabwe
"""
"""A line each: the code of two letters, that of three, the continent, and after the colon the names."""
EUROPEAN_UNION: Final = "at be bg cy cz de dk ee es fi fr gr hr hu ie it lt lu lv mt nl pl pt ro se si sk"
"""Its members."""
